"""Windows per second of LeRobot's own data loader; run by the Python of its environment.

python lerobot_loader.py FOLDER BATCH HORIZON WORKERS BATCHES
"""

import json
import sys
import time

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore
from torch.utils.data import DataLoader

folder, *numbers = sys.argv[1:]
batch, horizon, workers, batches = map(int, numbers)
meta = LeRobotDataset("local/loader", root=folder)
step, observed = 1 / meta.fps, [-1 / meta.fps, 0.0]
delta = {name: observed for name in meta.features if name.startswith("observation.")}
delta["action"] = [(i - 1) * step for i in range(horizon)]
dataset = LeRobotDataset("local/loader", root=folder, delta_timestamps=delta)
loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
iterator = iter(loader)
next(iterator)  # starts the workers and opens the files
start = time.perf_counter()
for _ in range(batches):
    next(iterator)
print(json.dumps({"windows_per_s": batches * batch / (time.perf_counter() - start)}))
