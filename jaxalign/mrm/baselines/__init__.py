"""Methods that MRM and hierarchical Bayes are compared with: importing one registers it."""

from jaxalign.mrm.baselines import bradley_terry as bradley_terry
from jaxalign.mrm.baselines import gpo as gpo
from jaxalign.mrm.baselines import lore as lore
from jaxalign.mrm.baselines import mixture as mixture
from jaxalign.mrm.baselines import neighbours as neighbours
from jaxalign.mrm.baselines import pal as pal
from jaxalign.mrm.baselines import vpl as vpl
