"""Errors of robomimic files that are damaged, incomplete or incompatible."""

from __future__ import annotations

import json

import numpy as np
import pytest
from robomimic_files import NEEDS_ROBOMIMIC, env_args, write_demonstrations

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.robomimic import read_robomimic

pytestmark = NEEDS_ROBOMIMIC


def damage(path, kind):
    """Write a valid file, then damage it in the way that ``kind`` names."""
    import h5py

    write_demonstrations(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no HDF5 at all")
    else:
        with h5py.File(path, "a") as file:
            data = file["data"]
            if kind == "no env_args":
                del data.attrs["env_args"]
            elif kind == "bad env_args":
                data.attrs["env_args"] = "{"
            elif kind == "unknown env":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", "Coffee_D0"))
            elif kind == "other env":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", "Lift"))
            elif kind == "controller":
                data.attrs["env_args"] = json.dumps(env_args("1.5.1", type="JOINT_POSITION"))
            elif kind == "version":
                data.attrs["env_args"] = json.dumps(env_args("1.2.0"))
            elif kind == "raw":
                del data["demo_1/obs"]
            elif kind == "no key":
                del data["demo_1/obs/robot0_eef_quat"]
            elif kind == "no actions":
                del data["demo_0/actions"]
            elif kind == "wide actions":
                del data["demo_0/actions"]
                data["demo_0/actions"] = np.zeros((5, 8))
            elif kind == "nan":
                data["demo_0/actions"][2, 3] = np.nan
            elif kind == "zero orientation":
                data["demo_1/obs/robot0_eef_quat"][3] = 0
            elif kind == "more observations":
                del data["demo_1/obs/object"]
                data["demo_1/obs/object"] = np.zeros((9, 14))
            elif kind == "other states":
                del data["demo_2/states"]
                data["demo_2/states"] = np.zeros((4, 11))
            elif kind == "an array of observations":
                del data["demo_1/obs"]
                data["demo_1/obs"] = np.zeros((7, 19))
            elif kind == "an array of data":
                del file["data"]
                file["data"] = np.zeros(3)
            elif kind == "a group of actions":
                del data["demo_1/actions"]
                data.create_group("demo_1/actions")
            elif kind == "words":
                del data["demo_0/obs/object"]
                data["demo_0/obs/object"] = np.full((5, 14), "x", dtype=h5py.string_dtype())
            elif kind == "no rows":
                del data["demo_0/actions"]
                data["demo_0/actions"] = np.zeros((0, 7))
            elif kind == "absurd":
                del data["demo_0/obs/object"]
                data.create_dataset("demo_0/obs/object", (10**13, 14), "f4", chunks=(1, 14))
            elif kind == "absurd actions":
                del data["demo_0/actions"]
                data.create_dataset("demo_0/actions", (10**14, 7), "f4", chunks=(1, 7))
            elif kind == "fewer samples":
                data["demo_0"].attrs["num_samples"] = 3
            elif kind == "notes":
                data.create_group("notes")
            elif kind == "many":
                for i in range(10, 17):
                    data.create_group(f"demo_{i}")
            elif kind in ("link", "dangling link", "soft link", "array elsewhere", "virtual array"):
                with h5py.File(path.with_name("other.hdf5"), "w") as other:
                    other["rows"] = np.zeros((5, 7))
                    other.create_group("demo")
                if kind == "link":
                    data["demo_9"] = h5py.ExternalLink("other.hdf5", "demo")
                elif kind == "dangling link":
                    data["demo_9"] = h5py.ExternalLink("none.hdf5", "demo")
                elif kind == "soft link":
                    file["hidden"] = h5py.ExternalLink("other.hdf5", "/")
                    data["demo_9"] = h5py.SoftLink("/hidden/demo")
                elif kind == "array elsewhere":
                    del data["demo_0/actions"]
                    raw = path.with_name("raw.bin")
                    raw.write_bytes(bytes(5 * 7 * 8))
                    data.create_dataset(
                        "demo_0/actions", (5, 7), "f8", external=[(str(raw), 0, 280)]
                    )
                else:
                    del data["demo_0/actions"]
                    virtual = h5py.VirtualLayout((5, 7), "f8")
                    virtual[...] = h5py.VirtualSource("other.hdf5", "rows", (5, 7))
                    data.create_virtual_dataset("demo_0/actions", virtual)
            elif kind == "none":
                for name in list(data):
                    del data[name]
            elif kind == "foreign":
                del file["data"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "cannot be read .* truncated or not a robomimic file"),
        ("empty", "truncated or not a robomimic file"),
        ("text", "truncated or not a robomimic file"),
        ("no env_args", "does not name its environment .* convert it with robomimic's"),
        ("bad env_args", "cannot be parsed"),
        ("unknown env", "of the unknown task 'Coffee_D0'"),
        ("other env", "demonstrations of the task Lift, not of PickPlaceCan"),
        ("controller", "controller type JOINT_POSITION at 20 Hz; only OSC_POSE"),
        ("version", r"robosuite 1\.2; versions 1\.4 and 1\.5 are supported"),
        ("raw", r"demo_1 has no observations, only states; add them with .*states_to_obs"),
        ("no key", "demo_1 lacks robot0_eef_quat"),
        ("no actions", "can.hdf5: demo_0 lacks actions"),
        ("wide actions", r"demo_0 has actions of shape \(5, 8\), not \(rows, 7\)"),
        ("nan", "demo_0 has NaN or infinity in actions, first in row 2"),
        ("zero orientation", "demo_1 has no orientation .* robot0_eef_quat, first in row 3"),
        ("more observations", "demo_1 has 9 rows of object, but 7 actions"),
        ("other states", "demo_2 has states of 11 numbers, others have 9"),
        ("an array of observations", "demo_1 has an array in place of the group obs"),
        ("an array of data", "has an array in place of the group data: it is not a robomimic file"),
        ("a group of actions", "demo_1 has a group in place of the array actions"),
        ("words", "demo_0 has object of type object, not numbers"),
        ("no rows", r"demo_0 has actions of shape \(0, 7\)"),
        ("absurd", r"demo_0 has 10000000000000 rows of object, but 5 actions"),
        ("absurd actions", r"cannot be read \(Unable to allocate"),
        ("fewer samples", r"demo_0 has 5 actions, but num_samples is 3"),
        ("notes", r"group data contains notes, which is not a demonstration .* task\.mask"),
        ("many", r"demo_10 lacks actions\. .*demo_14 lacks actions\. And 2 more\."),
        ("link", "demo_9 has demo_9 in another file, which is not followed"),
        ("dangling link", "demo_9 has demo_9 in another file, which is not followed"),
        ("soft link", "demo_9 has demo_9 in another file, which is not followed"),
        ("array elsewhere", "demo_0 has actions in another file, which is not followed"),
        ("virtual array", "demo_0 has actions in another file, which is not followed"),
        ("none", "contains no demonstrations"),
        ("foreign", "lacks data: it is not a robomimic file"),
    ],
)
def test_damaged_files_are_a_one_line_error(tmp_path, kind, message):
    path = tmp_path / "can.hdf5"
    damage(path, kind)
    with pytest.raises(EpisodeError, match=message) as caught:
        read_robomimic("Can", path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
