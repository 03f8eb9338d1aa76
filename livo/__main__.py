import sys

from livo.cli.main import main

sys.exit(main())
