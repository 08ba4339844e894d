"""Path-traced clips: furnished rooms and streets with traffic, rendered by Blender, as a second source of training.

Run as ``python -m stream4d.train.pathtraced OUT`` in an environment that has ``bpy`` (Blender as a Python module).
What it writes is read by ``real: [sintel:OUT]`` in a recipe. Shared parts: ``furniture`` (the catalogue), ``surfaces``
(made-up pictures), ``materials``, ``meshes``, ``stage`` and ``render`` (Blender's side), ``truth`` (labels and files),
``clips`` (all of them put together). Rooms: ``room_plan`` (where things stand), ``room_views`` (cameras), ``room``.
Streets: ``footprints``, ``road``, ``street_parts`` and ``street_plan`` (where things stand), ``traffic`` (what moves),
``street_views`` (cameras), ``street_surfaces``, ``street_shapes``, ``roadway``, ``street_builder``, ``street_sky`` and
``street``.
"""
