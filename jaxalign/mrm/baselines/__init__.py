"""Methods that MRM and hierarchical Bayes are compared with: importing one registers it."""

from jaxalign.mrm.baselines.bradley_terry import OneModelForAll as OneModelForAll
from jaxalign.mrm.baselines.bradley_terry import OneModelPerUser as OneModelPerUser
from jaxalign.mrm.baselines.bradley_terry_items import (
    OneModelWithItemEffects as OneModelWithItemEffects,
)
from jaxalign.mrm.baselines.gpo import GPO as GPO
from jaxalign.mrm.baselines.lore import LoRe as LoRe
from jaxalign.mrm.baselines.mixture import BradleyTerryMixture as BradleyTerryMixture
from jaxalign.mrm.baselines.neighbours import NearestNeighbours as NearestNeighbours
from jaxalign.mrm.baselines.pal import PAL as PAL
from jaxalign.mrm.baselines.pttt import PTTT as PTTT
from jaxalign.mrm.baselines.vpl import VPL as VPL
