import sys

from lspm_ray.cli import main

main(["profile", *sys.argv[1:]])
