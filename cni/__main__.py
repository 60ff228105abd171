"""``python -m cni``: the ``cni`` command."""

from cni.cli.main import main

raise SystemExit(main())
