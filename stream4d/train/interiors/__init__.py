"""Rendered interiors: rooms of real furniture models, path traced by Blender, as a second source of training clips.

Run as ``python -m stream4d.train.interiors OUT`` in an environment that has ``bpy`` (Blender as a Python module).
What it writes is read by ``real: [sintel:OUT]`` in a recipe. The parts: ``furniture`` (the catalogue), ``plan`` (where
things stand), ``surfaces`` (made-up pictures), ``materials``, ``meshes``, ``scene`` and ``render`` (Blender's side),
``views`` (cameras), ``truth`` (labels and files), ``clips`` (all of them put together).
"""
