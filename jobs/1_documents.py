import sys

from lspm_ray.cli import main

main(["documents", *sys.argv[1:]])
