"""``python -m stream4d`` is ``stream4d``."""

from stream4d.cli import main

raise SystemExit(main())
