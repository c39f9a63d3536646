import sys

from lspm_ray.cli import main

main(["predict", *sys.argv[1:]])
