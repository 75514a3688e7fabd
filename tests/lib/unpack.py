#!/usr/bin/env python3
"""Unpack an image for a test that isn't Python, and only reads it.

    unpack.py FOLDER NAME TO        NAME: a good image, or corrupt/NAME

See images.py.
"""
import sys

import images


def main():
    folder, name, to = sys.argv[1:4]
    if name.startswith("corrupt/"):
        images.unpack_damaged(folder, name[len("corrupt/"):], to)
    else:
        images.unpack_to_read(folder, name, to)


main()
