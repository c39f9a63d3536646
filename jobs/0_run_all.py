import sys

from lspm_ray.cli import main

main(["run", *sys.argv[1:]])
