"""Prediction in videos, from cameras and from streams: an annotated video with its sound, and a line for each frame.

Reading and writing are PyAV's, which brings FFmpeg: `pip install 'modeling-detr[video]'`.
"""
