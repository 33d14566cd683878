"""Datasets that are not on the disk: in object stores and on web servers, read with fsspec.

`opening.RemoteData` is what `open_dataset` uses. It lists the tree once and makes a mirror of it in the cache: files
of annotations are downloaded, and empty files stand for the images, so that every format finds its files as on a disk
(`mirror`). The loaders then read the images through a cache of limited size (`images`).
"""
