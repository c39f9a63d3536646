import sys

from lspm_ray.cli import main

main(["select", *sys.argv[1:]])
