import sys

from lspm_ray.cli import main

main(["blocks", *sys.argv[1:]])
