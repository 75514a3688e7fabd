"""What must be told of each damaged image, and what is lost with it.

Rows: reports: what the library must report, as (level, structure, part of the position), in any order, and nothing of
level "damage" besides; lost: which entries can't be read whole; damage: exact ranges of files. What isn't lost must be
exactly as the manifest says.
"""


def nothing(e):
    return False


def everything(e):
    return True


def with_content(e):
    """Files and symlinks that aren't empty: their content is in the extents btree."""
    return e["type"] in ("file", "symlink") and e["size"] > 0


def inodes_between(first, last):
    return lambda e: first <= e["ino"] <= last


def extents_of_v1_4_default(e):
    """The damaged leaf holds 4805:9 to 5731:8: extents end there, in sectors."""
    leaf_is_inside = 4805 < e["ino"] <= 5731 or (e["ino"] == 4805 and e["size"] > 4096)
    return with_content(e) and leaf_is_inside


NODE = "btree node"
DAMAGED_DIRENTS = {"reports": [("damage", NODE, "dirents level 0")], "lost": everything}
SUPERBLOCK = {"reports": [("recovered", "superblock", "copy at sector 8")]}
JOURNAL_543 = {"reports": [("damage", "journal", "entries 543-543")]}


def missing(device):
    return {"refused": ("ENODEV", ["device %d" % device, "degraded"]), "options": ["--degraded"],
            "optional": [("info", "member of the filesystem", "")], "device": "device %d" % device}


EXPECTED = {
    # What reading files doesn't need.
    "btree-alloc-leaf": {},
    "btree-alloc-root-one-replica": {},
    "btree-backpointers-leaf": {},
    "btree-freespace-leaf": {},
    "btree-lru-leaf": {},
    "btree-snapshot_trees-leaf": {},
    "journal-clean-last-entry": {},
    # The newest entry of an unclean journal that isn't whole was being written: it never counted.
    "journal-newest-entry": {},

    "btree-dirents-last-set": DAMAGED_DIRENTS,
    "btree-dirents-leaf": DAMAGED_DIRENTS,
    "btree-dirents-zeroed": DAMAGED_DIRENTS,
    "btree-dirents-root-one-replica": {"optional": [("recovered", NODE, "dirents level 1")]},
    "btree-extents-leaf": {"reports": [("damage", NODE, "extents level 0 5731:8:U32_MAX")],
                           "further": ("extents btree", "inode "), "lost": extents_of_v1_4_default},
    "btree-extents-root": {"reports": [("damage", NODE, "extents level 1")], "further": ("extents btree", "inode "),
                           "lost": with_content},
    "btree-extents-root-one-replica": {"optional": [("recovered", NODE, "extents level 1")]},
    # The leaf before ends at inode 4631.
    "btree-inodes-leaf": {"reports": [("damage", NODE, "inodes level 0 0:5787:U32_MAX")],
                          "lost": inodes_between(5259, 5787)},
    "btree-inodes-root": {"reports": [("damage", NODE, "inodes level 1")], "lost": everything},
    "btree-xattrs-leaf": {"reports": [("damage", NODE, "xattrs level 0")], "xattrs_lost": True},
    "btree-snapshots-leaf": {"reports": [("damage", NODE, "snapshots level 0"), ("damage", "namespace", "")],
                             "fallback": "the snapshots btree can't be read"},
    "btree-subvolumes-leaf": {"reports": [("damage", NODE, "subvolumes level 0"), ("damage", "namespace", "")],
                              "fallback": "the subvolumes btree can't be read"},

    "data-bitflip": {"reports": [("damage", "extent", "inode 6132")],
                     "damage": {"data/incompressible": [[159744, 65536]]}},
    "data-bitflip-both-replicas": {"reports": [("damage", "extent", "inode 6132")] * 2,
                                   "damage": {"data/incompressible": [[159744, 65536]]}},
    # Which replica is read first isn't promised.
    "data-bitflip-one-replica": {"optional": [("recovered", "extent", "inode 6132")]},

    "journal-middle-entry": JOURNAL_543,
    "journal-oldest-needed-zeroed": {"reports": [("damage", "journal", "entries 458-458")]},

    "sb-primary-and-layout-zeroed": SUPERBLOCK,
    "sb-primary-bitflip": SUPERBLOCK,
    "sb-primary-zeroed": SUPERBLOCK,

    # All leaves of inodes are behind the first 16 MiB. The names are there.
    "truncated-16m": {"reports": [("damage", "device", "size"), ("recovered", "superblock", "copy at sector 522240")],
                      "further": (NODE, " level 0 "), "lost": everything, "names_are_known": True},
    "truncated-200m": {"reports": [("damage", "device", "size"), ("recovered", "superblock", "copy at sector 522240")]},

    "missing-device-0": missing(0),
    "missing-device-1": missing(1),
    "ec-missing-device-2": missing(2),

    # Those of tests/images.
    "snapshots-sb-primary-zeroed": SUPERBLOCK,
    "snapshots-sb-all-zeroed": {"refused": ("EUCLEAN", ["superblock", "intact copy", "--sb"])},
    "snapshots-dirents-leaf": DAMAGED_DIRENTS,
    "snapshots-extents-leaf": {"reports": [("damage", NODE, "extents level 0")], "further": ("extents btree", "inode "),
                               "lost": with_content},
    "snapshots-inodes-leaf": {"reports": [("damage", NODE, "inodes level 0")], "lost": everything,
                              "names_are_known": True},
    "snapshots-xattrs-leaf": {"reports": [("damage", NODE, "xattrs level 0")], "xattrs_lost": True},
    "snapshots-subvolumes-leaf": {"reports": [("damage", NODE, "subvolumes level 0"), ("damage", "namespace", "")],
                                  "fallback": "the subvolumes btree can't be read"},
    # Real snapshots, and nothing that tells which is whose: only what is in no snapshot but the first is sure.
    "snapshots-snapshots-leaf": {"reports": [("damage", NODE, "snapshots level 0"), ("damage", "namespace", "")],
                                 "fallback": "the snapshots btree can't be read",
                                 "unsure": lambda e: e.get("subvol", 1) != 1},
    "snapshots-data-bitflip": {"reports": [("damage", "extent", "inode 4188")],
                               "damage": {"opts/compression-none": [[24576, 65536]]}},
    "replicas2-extents-leaf-one-replica": {"optional": [("recovered", NODE, "extents level 0")]},
    "replicas2-data-both-replicas": {"reports": [("damage", "extent", "inode 4124")] * 2,
                                     "damage": {"text": [[65536, 65536]]}},
}
