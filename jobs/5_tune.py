import sys

from lspm_ray.cli import main

main(["tune", *sys.argv[1:]])
