"""Energy-based transformer policies for LeRobot: ``lerobot-train --policy.type=ebt``.

LeRobot imports this module, which registers the policy. It finds `EBTPolicy` and
`make_ebt_pre_post_processors` in the modules beside the configuration by their names.
"""

from .configuration_ebt import EBTConfig

__all__ = ["EBTConfig"]
