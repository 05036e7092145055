"""Read a data set with the real LeRobot: ``python read_dataset.py FOLDER ROWS.npz``."""

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

folder, file = sys.argv[1:]
dataset = LeRobotDataset("local/read", root=folder)
items = [dataset[i] for i in range(len(dataset))]
names = [name for name in items[0] if items[0][name].__class__.__name__ == "Tensor"]
np.savez(
    file,
    episodes=dataset.num_episodes,
    instructions=[item["task"] for item in items],
    action_mean=dataset.meta.stats["action"]["mean"],
    **{name: np.stack([item[name].numpy() for item in items]) for name in names},
)
