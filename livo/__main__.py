import sys

from livo.cli import main

sys.exit(main())
