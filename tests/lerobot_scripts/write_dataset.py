"""Write a small data set with the real LeRobot: ``python write_dataset.py FOLDER ROWS.npz``."""

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

JOINTS = ["shoulder", "elbow", "gripper"]
folder, file = sys.argv[1:]
number = {"dtype": "float32", "shape": (3,), "names": JOINTS}
camera = {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
dataset = LeRobotDataset.create(
    repo_id="local/written", fps=10, root=folder, use_videos=True,
    features={"observation.state": number, "action": number, "observation.images.top": camera},
)  # fmt: skip
rows: dict[str, list[np.ndarray]] = {"observation.state": [], "action": []}
for episode, length in enumerate((15, 9)):
    for t in range(length):
        state = np.sin(np.arange(3) + episode + t / 10).astype(np.float32)
        frame = np.full((48, 64, 3), 40 + 10 * t, np.uint8)
        values = {"observation.state": state, "action": -state}
        dataset.add_frame({**values, "observation.images.top": frame, "task": f"Task {episode}."})
        for name, value in values.items():
            rows[name].append(value)
    dataset.save_episode()
dataset.finalize()
np.savez(file, **{name: np.stack(values) for name, values in rows.items()})
