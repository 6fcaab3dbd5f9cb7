"""The data recipe of the built-in model: emoji pictures of 128x128 with captions, in one packed file.

    python -m edgediffusion.export.builtin.data SOURCES OUT

SOURCES is a folder with four packages as `npm pack` and `apt-get download` fetch them; one that is missing is fetched:

    lobehub-fluent-emoji-3d-1.1.0.tgz  lobehub-fluent-emoji-flat-1.1.0.tgz  emojibase-data-17.0.0.tgz
    fonts-noto-color-emoji_*_all.deb

OUT is a zip: `index.json` (records, versions, licences) and `images/<style>/<id>.webp`. Packing needs resvg-py and
fontTools; `load` needs numpy and Pillow only. Recoloured pictures are not stored, `load` computes them. Licences and
counts: DATA.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediffusion.engines.errors import EdgeDiffusionError, UsageError

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

SIZE = 128
MARGIN = 4
STYLES = ("3d", "flat", "noto")
FORMAT = 1
RECOLOURED_WEIGHT = 0.3
#: How often a group is drawn in training: what people ask for more often than its share, roles and signs less.
GROUP_WEIGHTS = {"animals-nature": 1.5, "food-drink": 1.5, "people-body": 0.5, "symbols": 0.5, "flags": 0.5}


@dataclass(frozen=True)
class Record:
    """One picture. `hue` in degrees, `saturation` and `value` in [0, 1] are those of its dominant colour."""

    id: str  # code points in lower-case hexadecimal joined by '-', without variation selectors
    style: str
    label: str
    subjects: tuple[str, ...]  # noun phrases without an article, most literal first
    group: str
    subgroup: str
    colour: str  # name of the dominant colour, '' where there is no clear one or naming it is odd
    targets: tuple[str, ...]  # colours it can be recoloured to
    hue: float
    saturation: float
    value: float


@dataclass(frozen=True)
class Dataset:
    """Decoded pictures with what a user may type to get each."""

    images: U8  # (n, 128, 128, 3) RGB on white
    captions: list[list[str]]  # per picture, all variants, most literal first
    weights: F32  # (n,) sampling weight: GROUP_WEIGHTS, times RECOLOURED_WEIGHT for recolourings
    styles: list[str]


# --- colour ----------------------------------------------------------------------------------------------------------

# upper hue bound in degrees -> name; bounds set by eye on the pictures
HUE_NAMES = (
    (12, "red"),
    (34, "orange"),
    (39, ""),
    (68, "yellow"),
    (163, "green"),
    (185, ""),
    (253, "blue"),
    (297, "purple"),
    (343, "pink"),
)


@dataclass(frozen=True)
class Target:
    """Where a recolouring goes: hue in degrees, bounds of the saturation and value of the dominant colour there."""

    hue: float
    saturation: tuple[float, float]
    value: tuple[float, float]


TARGETS: dict[str, Target] = {
    "red": Target(357, (0.80, 0.92), (0.80, 0.95)),
    "orange": Target(27, (0.85, 0.92), (0.92, 1.00)),
    "yellow": Target(49, (0.80, 0.92), (0.95, 1.00)),
    "green": Target(125, (0.65, 0.80), (0.60, 0.80)),
    "blue": Target(214, (0.75, 0.90), (0.75, 0.97)),
    "purple": Target(273, (0.60, 0.80), (0.65, 0.90)),
    "pink": Target(328, (0.42, 0.50), (0.95, 1.00)),  # a strong pink is magenta
}
HALF_WINDOW = 60.0  # degrees around the dominant hue that recolouring moves; the outer third fades


@dataclass(frozen=True)
class Dominant:
    """The strongest hue of a picture."""

    hue: float  # degrees
    saturation: float
    value: float
    share: float  # of the coloured pixels, by chroma, those that lie within HALF_WINDOW of `hue`
    cover: float  # of the foreground pixels, those that lie within HALF_WINDOW of `hue`


def rgb_to_hsv(image: U8) -> tuple[F32, F32, F32]:
    """(..., 3) uint8 -> hue in degrees [0, 360), saturation and value in [0, 1], each (...) float32."""
    rgb = image.astype(np.float32) / 255
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    safe = np.where(chroma > 0, chroma, 1)
    sextant = np.where(value == r, ((g - b) / safe) % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = np.where(chroma > 0, sextant * 60, 0) % 360
    saturation = chroma / np.where(value > 0, value, 1)
    return hue.astype(np.float32), saturation.astype(np.float32), value.astype(np.float32)


def hsv_to_rgb(hue: F32, saturation: F32, value: F32) -> U8:
    """Inverse of `rgb_to_hsv`; any hue in degrees. Rounds half to even."""
    k = (np.array([5, 3, 1], np.float32) + (hue / 60)[..., None]) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    rgb = value[..., None] * (1 - saturation[..., None] * ramp)
    return np.asarray((np.clip(rgb, 0, 1) * 255).round(), np.uint8)


def hue_distance(a: F32, b: float) -> F32:
    """Degrees in [0, 180] between hues in degrees."""
    return np.asarray(np.abs((a - b + 180) % 360 - 180), np.float32)


def smoothstep(x: F32, low: float, high: float) -> F32:
    """0 below `low`, 1 above `high`, 3t^2 - 2t^3 between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def dominant_colour(image: U8, foreground: NDArray[np.bool_]) -> Dominant | None:
    """The strongest hue of an (h, w, 3) uint8 picture within `foreground` (h, w); None where hardly any is coloured."""
    hue, saturation, value = rgb_to_hsv(image)
    chroma = saturation * value
    mask = foreground & (chroma > 0.15)
    if mask.sum() < 0.02 * mask.size:
        return None
    h, weight = hue[mask], chroma[mask]
    bins = np.bincount((h / 10).astype(int) % 36, weight, 36)
    smooth = bins + np.roll(bins, 1) + np.roll(bins, -1)
    centre = float(smooth.argmax() * 10 + 5)
    near = hue_distance(h, centre) < 30
    offset = ((h - centre + 180) % 360 - 180)[near]
    centre = (centre + float(np.average(offset, weights=weight[near]))) % 360
    core = hue_distance(h, centre) < 30
    return Dominant(
        hue=centre,
        saturation=float(np.median(saturation[mask][core])),
        value=float(np.median(value[mask][core])),
        share=float(weight[hue_distance(h, centre) < HALF_WINDOW].sum() / weight.sum()),
        cover=float((hue_distance(h, centre) < HALF_WINDOW).sum() / foreground.sum()),
    )


def colour_name(hue: float, saturation: float, value: float) -> str:
    """The plain English word for a colour, '' between words. Hue in degrees, the others in [0, 1]."""
    if value < 0.22:
        return "black"
    if saturation < 0.12:
        return "grey" if value < 0.8 else "white"
    if saturation * value < 0.2:
        return ""
    name = next((name for bound, name in HUE_NAMES if hue % 360 < bound), "red")
    if 8 < hue % 360 < 45 and (value < 0.72 or (saturation < 0.7 and value < 0.82)):
        return "brown"
    if name == "orange" and saturation < 0.7:  # tan
        return ""
    if name == "red" and saturation < 0.5:
        return "pink" if value > 0.8 else ""
    if name == "pink" and saturation > 0.7 and hue > 334:  # crimson, what the pictures use for red
        return "red"
    if name == "pink" and saturation < 0.45 and value < 0.85:  # tinted wood and steel
        return ""
    if name in ("purple", "blue") and value < 0.5:  # dark things tinted, such as a black cat
        return ""
    return name


def recolour(image: U8, hue_shift: float, *, hue: float | None = None, saturation: float = 1, value: float = 1) -> U8:
    """Turn the hues of an (h, w, 3) uint8 RGB picture by `hue_shift` degrees; white, greys and black stay.

    With `hue` only pixels whose hue is within HALF_WINDOW degrees of it move. `saturation` and `value` are gains on
    the pixels that move: g > 1 maps x to 1 - (1 - x)**g, so that shading survives, g < 1 maps x to g * x.
    """
    out = image.copy()
    moving = np.ptp(image, axis=-1) > 4
    pixels = image[moving]
    h, s, v = rgb_to_hsv(pixels)
    mix = smoothstep(s * v, 0.02, 0.08)
    if hue is not None:
        mix = mix * (1 - smoothstep(hue_distance(h, hue), HALF_WINDOW * 2 / 3, HALF_WINDOW))
    # highlights and antialiased edges towards white have low saturation: the gains fade out there
    fade = smoothstep(s, 0.0, 0.35)
    turned = hsv_to_rgb(h + np.float32(hue_shift), _apply(s, saturation, fade), _apply(v, value, fade))
    out[moving] = (pixels + mix[:, None] * (turned.astype(np.float32) - pixels)).round()
    return out


def _apply(x: F32, gain: float, fade: F32) -> F32:
    moved = 1 - (1 - x) ** np.float32(gain) if gain > 1 else x * np.float32(gain)
    return np.asarray(x + fade * (moved - x), np.float32)


def _gain(have: float, bounds: tuple[float, float]) -> float:
    """The gain, as `recolour` takes it and at most 4, that brings `have` within bounds."""
    low, high = bounds
    if have > high:
        return high / have
    if have >= low:
        return 1.0
    return float(np.clip(np.log(1 - min(low, 0.99)) / np.log(1 - max(have, 0.05)), 1, 4))


def recolour_to(image: U8, record: Record, target: str) -> U8:
    """The picture of `record` with its dominant colour moved to `target`, a key of TARGETS."""
    goal = TARGETS[target]
    saturation, value = _gain(record.saturation, goal.saturation), _gain(record.value, goal.value)
    return recolour(image, goal.hue - record.hue, hue=record.hue, saturation=saturation, value=value)


# --- words -----------------------------------------------------------------------------------------------------------


def _words(text: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(text.split(separator))


COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")

# label = what to call it, most literal first; a label that is not here is its own only subject
NAMES = """
grinning face = grinning face, happy face, smiley face
grinning face with big eyes = grinning face with big eyes, happy face
grinning face with smiling eyes = grinning face with smiling eyes, happy face, laughing face
beaming face with smiling eyes = beaming face, grinning face with teeth
grinning squinting face = laughing face with closed eyes, laughing face
grinning face with sweat = grinning face with sweat
rolling on the floor laughing = rolling laughing face, laughing face
face with tears of joy = face with tears of joy, laughing crying face, laughing face
slightly smiling face = slightly smiling face, smiling face, smiley face
upside-down face = upside-down face
winking face = winking face
smiling face with smiling eyes = smiling face with blushing cheeks, smiling face, happy face
smiling face with halo = smiling face with halo, angel face
smiling face with hearts = smiling face with hearts, face in love
smiling face with heart-eyes = smiling face with heart-eyes, face with heart eyes
star-struck = face with star eyes, star-struck face
face blowing a kiss = face blowing a kiss, kissing face
smiling face = smiling face, happy face
smiling face with tear = smiling face with a tear
face savoring food = face licking its lips, yummy face
face with tongue = face sticking out its tongue, face with tongue
winking face with tongue = winking face with tongue
zany face = zany face, crazy face, goofy face
smiling face with open hands = hugging face
face with hand over mouth = face with hand over mouth, giggling face
shushing face = shushing face, quiet face
thinking face = thinking face
face without mouth = face without mouth
face with rolling eyes = face with rolling eyes
lying face = lying face with a long nose
sleepy face = sleepy face
sleeping face = sleeping face
face with medical mask = face with medical mask, sick face
face with thermometer = face with thermometer, sick face
nauseated face = nauseated green face, nauseated face
face vomiting = vomiting face
sneezing face = sneezing face
hot face = hot face, sweating red face
cold face = cold face, freezing blue face
face with crossed-out eyes = dizzy face with crossed-out eyes
exploding head = exploding head, mind blown face
cowboy hat face = face with cowboy hat, cowboy face
partying face = partying face, party face with hat
disguised face = disguised face with glasses and moustache
smiling face with sunglasses = smiling face with sunglasses, cool face
nerd face = nerd face with glasses, nerd face
face with monocle = face with monocle
confused face = confused face
worried face = worried face
slightly frowning face = slightly frowning face, sad face
frowning face = frowning face, sad face
face with open mouth = surprised face with open mouth, surprised face
astonished face = astonished face, shocked face
flushed face = flushed face, embarrassed face
pleading face = pleading face
fearful face = fearful face, scared face
crying face = crying face, sad face with a tear
loudly crying face = loudly crying face, sobbing face
face screaming in fear = screaming face, scared face
disappointed face = disappointed face, sad face
yawning face = yawning face
face with steam from nose = face with steam from nose, angry face
enraged face = red angry face, angry face
angry face = angry face
face with symbols on mouth = swearing face, angry red face
smiling face with horns = smiling purple devil, smiling devil
angry face with horns = angry purple devil, angry devil
skull = skull
pile of poo = pile of poo, poop
clown face = clown face, clown
ogre = ogre, ogre mask
goblin = goblin mask, goblin
ghost = ghost, white ghost
alien = alien, alien face, grey alien head
alien monster = space invader, alien monster, pixel alien
robot = robot, robot face, robot head
grinning cat = grinning cat face, smiling cat face, smiling cat, happy cat
grinning cat with smiling eyes = grinning cat with smiling eyes, smiling cat face, happy cat face
cat with tears of joy = laughing cat with tears of joy, laughing cat face
smiling cat with heart-eyes = smiling cat with heart-eyes, cat face with heart eyes
cat with wry smile = cat with wry smile, smirking cat face
kissing cat = kissing cat face
weary cat = weary cat face, surprised cat face
crying cat = crying cat face, sad cat face
pouting cat = angry cat face, pouting cat face
see-no-evil monkey = monkey covering its eyes, see-no-evil monkey
hear-no-evil monkey = monkey covering its ears, hear-no-evil monkey
speak-no-evil monkey = monkey covering its mouth, speak-no-evil monkey
love letter = love letter, envelope with a heart
heart with arrow = heart with an arrow
heart with ribbon = heart with a ribbon, heart gift
sparkling heart = sparkling heart
heart on fire = heart on fire, burning heart
mending heart = bandaged heart
kiss mark = red lipstick kiss, kiss mark
hundred points = hundred points, number 100
collision = explosion
sweat droplets = water droplets
dashing away = puff of smoke
hole = black hole, hole
speech balloon = speech bubble, speech balloon
thought balloon = thought bubble, thought balloon
zzz = sleeping zzz, letters zzz
dog = dog, standing dog
dog face = dog face, dog, puppy
cat = cat, standing cat
cat face = cat face, cat, kitten
monkey face = monkey face, monkey
tiger face = tiger face, tiger
horse face = horse head, horse
cow face = cow face, cow
pig face = pig face, pig
mouse face = mouse face, mouse
rabbit face = rabbit face, rabbit, bunny
rabbit = rabbit, bunny
dragon face = dragon head, dragon
unicorn = unicorn, unicorn head
fox = fox, fox face
wolf = wolf, wolf face
lion = lion, lion face
bear = bear, bear face
panda = panda, panda face
koala = koala, koala face
frog = frog, frog face, green frog
hamster = hamster, hamster face
raccoon = raccoon, raccoon face
ewe = sheep, ewe
bison = bison, buffalo
rhinoceros = rhinoceros, rhino
hippopotamus = hippopotamus, hippo
two-hump camel = two-hump camel, camel
chipmunk = chipmunk, squirrel
pig nose = pig nose, pig snout
rooster = rooster, cockerel
chicken = chicken head, chicken, hen
hatching chick = hatching chick, chick in an egg
baby chick = baby chick, chick
front-facing baby chick = baby chick with spread wings, chick
bird = bird
dove = white dove, dove
black bird = black bird, crow, raven
sauropod = sauropod, long-necked dinosaur, dinosaur
t-rex = t-rex, tyrannosaurus, dinosaur
spouting whale = spouting whale, whale
orca = orca, killer whale
blowfish = blowfish, pufferfish
spiral shell = spiral seashell, seashell
bug = caterpillar, bug
honeybee = bee, honeybee
lady beetle = ladybug, lady beetle, ladybird
cricket = cricket, grasshopper
turtle = turtle, tortoise
crocodile = crocodile, alligator
snake = snake
microbe = microbe, germ, bacterium
bouquet = bouquet of flowers, bouquet
cherry blossom = cherry blossom, pink flower
rose = red rose, rose
hibiscus = hibiscus, hibiscus flower
sunflower = sunflower
blossom = flower, blossom
tulip = tulip
lotus = lotus flower, lotus
hyacinth = hyacinth flower, lavender
seedling = seedling, green sprout
potted plant = potted plant, plant in a pot
evergreen tree = evergreen tree, pine tree, fir tree
deciduous tree = tree, green tree, deciduous tree
palm tree = palm tree
cactus = cactus, green cactus
sheaf of rice = sheaf of wheat, wheat
herb = sprig of green leaves, herb
shamrock = shamrock, three-leaf clover
four leaf clover = four-leaf clover, clover
maple leaf = maple leaf, autumn leaf
fallen leaf = fallen leaves, autumn leaves
leaf fluttering in wind = green leaves in the wind, green leaves
mushroom = mushroom, toadstool
leafless tree = leafless tree, bare tree
tangerine = orange, orange fruit, tangerine
melon = melon
watermelon = slice of watermelon, watermelon
cherries = cherries, two cherries
kiwi fruit = kiwi, kiwi fruit, sliced kiwi
coconut = coconut, half a coconut
avocado = avocado, half an avocado
eggplant = eggplant, aubergine
ear of corn = ear of corn, corn cob
hot pepper = hot pepper, chili pepper
leafy green = leafy green vegetable, lettuce
pea pod = pea pod, green peas
root vegetable = root vegetable, beetroot
brown mushroom = brown mushroom
bread = loaf of bread, bread
baguette bread = baguette
pancakes = stack of pancakes, pancakes
cheese wedge = wedge of cheese, cheese
meat on bone = meat on a bone
poultry leg = chicken leg, drumstick
cut of meat = steak, cut of meat
bacon = bacon, strips of bacon
hamburger = hamburger, burger, cheeseburger
french fries = french fries, fries
pizza = slice of pizza, pizza slice, pizza
hot dog = hot dog
stuffed flatbread = pita sandwich, kebab
cooking = fried egg in a pan, frying pan with an egg
shallow pan of food = pan of paella, pan of food
pot of food = pot of stew, pot of soup
bowl with spoon = bowl with a spoon
green salad = bowl of salad, green salad
popcorn = box of popcorn, popcorn
butter = stick of butter, butter
salt = salt shaker, salt
canned food = can of food, tin can
cooked rice = bowl of rice, cooked rice
curry rice = curry with rice
steaming bowl = bowl of ramen, bowl of noodles, noodle soup
spaghetti = plate of spaghetti, spaghetti
fried shrimp = fried shrimp, tempura
oden = oden skewer
fish cake with swirl = fish cake with a pink swirl
roasted sweet potato = roasted sweet potato, sweet potato
soft ice cream = ice cream cone, soft ice cream
ice cream = bowl of ice cream, ice cream
shaved ice = shaved ice
doughnut = doughnut, donut
cookie = cookie, chocolate chip cookie
birthday cake = birthday cake, cake with candles, cake
shortcake = slice of cake, strawberry shortcake, shortcake
candy = piece of candy, wrapped candy, candy
custard = custard, caramel pudding
honey pot = honey pot, jar of honey
glass of milk = glass of milk
hot beverage = cup of coffee, coffee cup, hot drink
teacup without handle = cup of green tea, cup of tea
sake = sake bottle and cup
bottle with popping cork = bottle of champagne, champagne bottle
wine glass = glass of red wine, wine glass, glass of wine
cocktail glass = cocktail glass, martini
tropical drink = tropical drink, tropical cocktail
beer mug = mug of beer, beer mug, beer
clinking glasses = clinking champagne glasses, champagne glasses
tumbler glass = glass of whiskey, whiskey glass
pouring liquid = glass pouring water
cup with straw = cup with a straw, soda cup
bubble tea = bubble tea, boba tea
beverage box = juice box
mate = cup of mate
ice = ice cube, block of ice
fork and knife with plate = plate with fork and knife, dinner plate
kitchen knife = kitchen knife, knife
globe showing europe-africa = globe, planet earth, earth
globe showing americas = globe, planet earth, earth
globe showing asia-australia = globe, planet earth, earth
globe with meridians = globe with meridians
snow-capped mountain = snowy mountain, snow-capped mountain
mountain = mountain
volcano = volcano, erupting volcano
mount fuji = mount fuji, snowy mountain
camping = tent under a tree, campsite
beach with umbrella = beach with umbrella, beach
desert = desert, desert with cactus
desert island = desert island, island with a palm tree
national park = national park, landscape with trees and river
classical building = classical building, greek temple
building construction = construction site, construction crane
brick = bricks, brick wall
rock = rock, grey rock, stone
wood = wooden log, log
hut = hut
houses = houses
derelict house = derelict house, old house
house = house, home
house with garden = house with garden, house with a tree, house
office building = office building, skyscraper
japanese castle = japanese castle
castle = castle
wedding = wedding chapel, chapel with a heart
tokyo tower = tokyo tower
statue of liberty = statue of liberty
foggy = foggy city, bridge in fog
night with stars = city at night, night sky with stars
cityscape = cityscape, city skyline
sunrise over mountains = sunrise over mountains
sunrise = sunrise over the sea, sunrise
cityscape at dusk = city at dusk, cityscape at dusk
sunset = sunset over the city, sunset
hot springs = hot springs symbol
carousel horse = carousel horse
roller coaster = roller coaster
locomotive = steam train, steam locomotive, locomotive
railway car = railway car, train car
high-speed train = high-speed train
bullet train = bullet train
metro = metro train, subway train
station = train station
mountain railway = mountain train
tram car = tram car
bus = bus, city bus
oncoming bus = oncoming bus, bus seen from the front
minibus = minibus, van
fire engine = fire truck, red fire truck, fire engine
police car = police car
taxi = taxi, yellow taxi, cab
automobile = car, automobile
oncoming automobile = car seen from the front, oncoming car, car
oncoming taxi = taxi seen from the front, oncoming taxi
oncoming police car = police car seen from the front
sport utility vehicle = suv, sport utility vehicle, jeep
pickup truck = pickup truck, truck
delivery truck = delivery truck, truck
articulated lorry = lorry, semi truck, big truck
tractor = tractor
racing car = racing car, race car, formula one car
motorcycle = motorcycle, motorbike
motor scooter = motor scooter, scooter
auto rickshaw = auto rickshaw, tuk-tuk
bicycle = bicycle, bike
kick scooter = kick scooter
manual wheelchair = wheelchair
motorized wheelchair = motorized wheelchair
motorway = motorway, highway
fuel pump = gas pump, fuel pump
wheel = wheel, tire
police car light = siren, police light
vertical traffic light = traffic light, vertical traffic light
horizontal traffic light = horizontal traffic light, traffic light
construction = construction barrier
ring buoy = life ring, lifebuoy
sailboat = sailboat, sailing boat
passenger ship = cruise ship, passenger ship
motor boat = motor boat
ship = ship, big ship
airplane = airplane, plane
small airplane = small airplane, small plane
airplane departure = airplane taking off
airplane arrival = airplane landing
seat = airplane seat, seat
rocket = rocket, space rocket, rocket ship
flying saucer = flying saucer, ufo
bellhop bell = bellhop bell, service bell
luggage = suitcase, luggage bag
hourglass done = hourglass
hourglass not done = hourglass with flowing sand, hourglass
watch = watch, wristwatch
timer clock = timer
mantelpiece clock = mantelpiece clock
new moon = new moon, dark moon
full moon = full moon, moon
crescent moon = crescent moon, yellow crescent moon, moon
new moon face = new moon with a face
first quarter moon face = crescent moon with a face
last quarter moon face = crescent moon with a face
full moon face = full moon with a face, moon with a face
sun = sun, yellow sun
sun with face = sun with a face, smiling sun
ringed planet = planet with rings, saturn, planet
star = star, yellow star
glowing star = glowing star, shining star
milky way = milky way, galaxy, night sky
cloud = cloud
cloud with lightning and rain = cloud with lightning and rain, thunderstorm cloud
cloud with rain = rain cloud, cloud with rain
cloud with snow = snow cloud, cloud with snow
cloud with lightning = cloud with lightning, storm cloud
wind face = cloud blowing wind
cyclone = spiral, cyclone
high voltage = lightning bolt, thunderbolt
umbrella with rain drops = umbrella in the rain
umbrella on ground = beach umbrella, parasol
closed umbrella = closed umbrella
snowman = snowman in the snow, snowman
snowman without snow = snowman
fire = fire, flame
droplet = drop of water, water drop
water wave = ocean wave, wave
jack-o-lantern = jack-o-lantern, halloween pumpkin, pumpkin
christmas tree = christmas tree, decorated christmas tree
balloon = balloon
party popper = party popper
carp streamer = carp streamer
wrapped gift = gift, present, gift box
ribbon = ribbon bow, bow
reminder ribbon = awareness ribbon
admission tickets = admission tickets
military medal = military medal
trophy = trophy, gold trophy, golden cup
sports medal = gold medal, sports medal
1st place medal = gold medal, first place medal
2nd place medal = silver medal, second place medal
3rd place medal = bronze medal, third place medal
soccer ball = soccer ball, football
american football = american football
tennis = tennis ball
flying disc = frisbee, flying disc
bowling = bowling ball and pins
cricket game = cricket bat and ball
field hockey = field hockey stick and ball
ice hockey = ice hockey stick and puck
lacrosse = lacrosse stick
ping pong = ping pong paddle, table tennis bat
badminton = badminton racket and shuttlecock
goal net = goal net
flag in hole = golf flag
fishing pole = fishing rod with a fish
bullseye = dartboard, target with a dart, bullseye
water pistol = water pistol, water gun, toy gun
pool 8 ball = 8 ball, pool ball
video game = game controller, gamepad
game die = die, dice
joker = joker card, playing card
performing arts = theatre masks
framed picture = framed picture, painting in a frame
artist palette = artist palette, paint palette
thread = spool of thread
yarn = ball of yarn
knot = rope knot, knot
glasses = glasses, eyeglasses
necktie = necktie, tie
t-shirt = t-shirt, shirt
jeans = jeans, trousers
coat = coat, jacket
one-piece swimsuit = swimsuit
briefs = briefs, swimming trunks
woman's clothes = blouse, woman's blouse
man's shoe = leather shoe, man's shoe
running shoe = sneaker, running shoe
flat shoe = flat shoe
high-heeled shoe = high-heeled shoe, high heel
woman's sandal = woman's sandal, sandal
woman's boot = woman's boot, boot
woman's hat = hat with a ribbon, sun hat
top hat = top hat, black top hat
graduation cap = graduation cap
billed cap = baseball cap, cap
rescue worker's helmet = rescue helmet, helmet with a cross
crown = crown, gold crown
ring = diamond ring, ring
gem stone = diamond, gem
headphone = headphones
musical keyboard = piano keyboard, piano keys
drum = drum, drum with drumsticks
long drum = conga drum
mobile phone = mobile phone, smartphone
mobile phone with arrow = mobile phone with an arrow
telephone = telephone, phone
laptop = laptop, laptop computer, computer
desktop computer = desktop computer, computer monitor
optical disk = compact disc, cd
dvd = golden disc, dvd
computer disk = minidisc
television = television, tv
movie camera = movie camera
magnifying glass tilted left = magnifying glass
magnifying glass tilted right = magnifying glass
light bulb = light bulb
red paper lantern = red paper lantern
closed book = red book, closed book, book
open book = open book
green book = green book, book
blue book = blue book, book
orange book = orange book, book
books = stack of books, books
page with curl = page with curl, sheet of paper
page facing up = page of text, document
label = price tag, label
coin = gold coin, coin
money bag = money bag, bag of money
treasure chest = treasure chest
dollar banknote = dollar bills, banknotes
money with wings = money with wings, flying money
credit card = credit card, bank card
envelope = envelope, letter
e-mail = e-mail envelope, e-mail
package = cardboard box, package
closed mailbox with raised flag = closed mailbox with raised flag, mailbox
postbox = postbox
pencil = pencil
black nib = black pen nib
pen = ballpoint pen, pen
paintbrush = paintbrush
memo = memo with a pencil, paper and pencil
chart increasing = chart going up
chart decreasing = chart going down
locked = locked padlock, padlock, lock
unlocked = open padlock, unlocked padlock
locked with pen = padlock with a pen
locked with key = padlock with a key
straight ruler = ruler, straight ruler
wastebasket = trash can, wastebasket
pick = pickaxe
dagger = dagger, sword
bow and arrow = bow and arrow
carpentry saw = saw, hand saw
link = chain link
balance scale = balance scale, scales of justice
chains = chains, metal chain
magnet = magnet, horseshoe magnet
shovel = shovel, spade
satellite antenna = satellite dish
drop of blood = drop of blood, red drop
pill = pill, capsule
adhesive bandage = bandage, plaster
couch and lamp = couch and lamp, sofa
mouse trap = mouse trap
lotion bottle = lotion bottle
roll of paper = roll of toilet paper, toilet paper
headstone = headstone, gravestone
nazar amulet = nazar amulet, blue eye amulet
moai = moai, stone head statue
identification card = identification card
litter in bin sign = litter bin sign
no entry = no entry sign
no bicycles = no bicycles sign
no smoking = no smoking sign
no littering = no littering sign
no pedestrians = no pedestrians sign
no mobile phones = no phones sign
non-potable water = no drinking water sign
prohibited = prohibition sign
radioactive = radioactive sign
biohazard = biohazard sign
warning = warning sign
children crossing = pedestrian sign, crossing sign
right arrow curving left = curved arrow pointing left
left arrow curving right = curved arrow pointing right
right arrow curving up = curved arrow pointing up
right arrow curving down = curved arrow pointing down
clockwise vertical arrows = two circular arrows
counterclockwise arrows button = circular arrows button
up arrow = up arrow, arrow pointing up
down arrow = down arrow, arrow pointing down
left arrow = left arrow, arrow pointing left
right arrow = right arrow, arrow pointing right
yin yang = yin yang, yin yang symbol
latin cross = latin cross, cross
multiply = multiplication sign, letter x
plus = plus sign
minus = minus sign
divide = division sign
infinity = infinity symbol
red question mark = red question mark, question mark
red exclamation mark = red exclamation mark, exclamation mark
heavy dollar sign = dollar sign
check mark button = check mark button, check mark
check mark = check mark, tick
cross mark = cross mark, letter x
hollow red circle = hollow red circle, red ring
black large square = black square
white large square = white square
large orange diamond = orange diamond
large blue diamond = blue diamond shape
red triangle pointed up = red triangle
red triangle pointed down = red triangle pointing down
light blue heart = light blue heart
heart suit = red heart
diamond suit = red diamond shape, diamond suit
spade suit = black spade, spade suit
club suit = black club, club suit
waving hand = waving hand, hand
raised hand = raised hand, hand
ok hand = ok hand, ok sign
victory hand = victory hand, peace sign
sign of the horns = rock hand sign, hand with horns
backhand index pointing left = finger pointing left
backhand index pointing right = finger pointing right
backhand index pointing up = finger pointing up
backhand index pointing down = finger pointing down
index pointing up = index finger pointing up
index pointing at the viewer = finger pointing at the viewer
thumbs up = thumbs up, hand with thumb up
thumbs down = thumbs down, hand with thumb down
raised fist = raised fist, fist
folded hands = folded hands, praying hands
flexed biceps = flexed biceps, strong arm, muscle
eyes = two eyes, eyes
mouth = mouth, lips
brain = brain, pink brain
anatomical heart = anatomical heart
footprints = footprints
baby = baby face, baby
child = child
person = person
man = man
woman = woman
boy = boy
girl = girl
old man = old man, grandfather
old woman = old woman, grandmother
older person = old person
health worker = doctor, health worker
cook = chef, cook
technologist = programmer, person with a laptop
astronaut = astronaut
police officer = police officer
guard = royal guard, guard
ninja = ninja
mage = wizard, mage
merperson = merperson
merman = merman
mermaid = mermaid
supervillain = supervillain, villain
person with crown = person with a crown, king
prince = prince
princess = princess
baby angel = baby angel, angel
santa claus = santa claus, santa
mrs. claus = mrs. claus
hairy creature = hairy creature, bigfoot
person with veil = bride, person with a veil
woman with veil = bride, woman with a veil
breast-feeding = woman breast-feeding a baby
bust in silhouette = bust in silhouette
woman dancing = woman dancing in a dress, woman dancing
man dancing = man dancing
person in suit levitating = levitating man in a suit
person running = person running, runner
person swimming = person swimming, swimmer
person surfing = person surfing, surfer
person in bed = person in bed
woman and man holding hands = man and woman holding hands, couple
couple with heart = couple with a heart
kiss = couple kissing
family = family
horse racing = jockey on a horse, horse race
palms up together = cupped hands
rightwards hand = hand pointing right
leftwards hand = hand pointing left
palm down hand = hand with palm down
palm up hand = hand with palm up
sun behind cloud = sun behind a cloud, cloud and sun
sun behind small cloud = sun behind a small cloud
sun behind large cloud = sun behind a large cloud
sun behind rain cloud = sun behind a rain cloud
eye in speech bubble = eye in a speech bubble
nail polish = hand with nail polish, nail polish
selfie = hand holding a phone, selfie
writing hand = hand with a pen, writing hand
chequered flag = chequered flag
triangular flag = triangular flag, flag
black flag = black flag
white flag = white flag
rainbow flag = rainbow flag
pirate flag = pirate flag
""".strip()

PEOPLE_PHRASES = (
    (r"getting (massage|haircut)", r"getting a \1"),
    (r"rowing boat", "rowing a boat"),
    (r"bouncing ball", "bouncing a ball"),
    (r"mountain biking", "riding a mountain bike"),
    (r"biking", "riding a bike"),
    (r"in lotus position", "meditating"),
    (r"raising hand", "raising a hand"),
    (r"gesturing no", "saying no"),
    (r"gesturing ok", "making an ok sign"),
    (r"in steamy room", "in a steam room"),
    (r"taking bath", "taking a bath"),
    (r"feeding baby", "feeding a baby"),
    (r"in manual wheelchair", "in a wheelchair"),
    (r"(wearing|with|in) (turban|skullcap|headscarf|white cane|motorized wheelchair|tuxedo|veil|crown)$", r"\1 a \2"),
)
MASS = _words(
    "bread cheese popcorn bacon broccoli garlic rice spaghetti sushi butter salt fire water wood corn candy ice "
    "beer sake mate toast honey coral money luggage lettuce lavender wheat chocolate ginger tempura poop soap "
    "curry oden fog lightning underwear yarn sleeping"
)
SINGULAR_S = _words(
    "bus minibus trolleybus glass cactus octopus compass dress cross lotus virus hibiscus hippopotamus tyrannosaurus "
    "claus fleur-de-lis tennis class abacus canvas mantis iris rhinoceros"
)
PLURAL = _words("people men women children feet teeth lips fries leaves scissors dice bricks")
NO_ARTICLE = _words(
    "santa claus|santa|mrs. claus|mx claus|mount fuji|saturn|planet earth|letters zzz|thumbs up|thumbs down|"
    "half a coconut|half an avocado|number 100|letter x|flying money|money with wings|noodle soup|toilet paper|"
    "curry with rice|mate",
    "|",
)
PERSONS = _words("person man woman boy girl child baby couple face")
THE = frozenset({"statue of liberty", "milky way", "kaaba", "earth"})
AN_EXCEPTIONS = ("unicorn", "uniform", "ewe", "one-", "ufo", "euro", "u-")
PREPOSITIONS = re.compile(
    r" (?:with|of|in|on|over|at|behind|without|and|covering|seen|under|from|to|pointing|pouring|blowing|sticking|"
    r"licking|holding|taking|going|for) "
)


def article(subject: str) -> str:
    """'an ' or 'a ' or 'the ' or, before plurals, masses and names, ''."""
    if subject in THE:
        return "the "
    head = PREPOSITIONS.split(subject)[0]
    first, last = head.split()[0], head.split()[-1]
    if first in PERSONS:
        return "a "
    if subject in NO_ARTICLE or last in MASS or last in PLURAL or first in PLURAL or first == "two":
        return ""
    if last.endswith("s") and not last.endswith(("ss", "'s")) and last not in SINGULAR_S:
        return ""
    if first.startswith(AN_EXCEPTIONS):
        return "a "
    return "an " if first[0] in "aeiou8" or first in ("x-ray", "hour", "hourglass", "suv") else "a "


def strip_colour(subject: str) -> str:
    """'red apple' -> 'apple', 'light blue heart' -> 'heart'; a subject that is only a colour stays."""
    words = subject.split()
    bare = words[1:] if words[0] == "light" and len(words) > 2 and words[1] in COLOUR_WORDS else words
    if bare[0] in COLOUR_WORDS and len(bare) > 1 and bare[1] not in PREPOSITION_WORDS and bare[1] != "fruit":
        bare = bare[1:]
    return " ".join(bare)


PREPOSITION_WORDS = _words("with of in on over at and")


def _phrases(subject: str, style: str) -> list[str]:
    full = article(subject) + subject
    return list(dict.fromkeys([f"{full}, {style}", full, f"{subject}, {style}"]))


def captions(record: Record, style: str, colour: str | None = None) -> list[str]:
    """What a user may type to get this picture, lower case, most literal first.

    With `colour` (the name of a recolouring) every caption carries it and none the picture's own colour.
    """
    out: list[str] = []
    for subject in record.subjects:
        bare = strip_colour(subject)
        if colour is not None:
            if not set(bare.split()) & set(COLOUR_WORDS):
                out += _phrases(f"{colour} {bare}", style)
            continue
        out += _phrases(subject, style)
        if bare != subject:
            out += _phrases(bare, style)
        elif record.colour and not set(subject.split()) & set(COLOUR_WORDS):
            out += _phrases(f"{record.colour} {subject}", style)
    return list(dict.fromkeys(out))


# --- choice ----------------------------------------------------------------------------------------------------------

DROPPED_SUBGROUPS = _words(
    "country-flag subdivision-flag keycap alphanum gender zodiac av-symbol transport-sign skin-tone hair-style"
)
DROPPED_LABELS = re.compile(
    r"facing right|^(kiss|couple with heart|family): |thirty$|medium(-small)? square|small (square|\w+ square)$|"
    r"small \w+ diamond|^(back|end|on!|soon|top) arrow|moon viewing|copyright|registered|trade mark|curly loop|"
    r"part alternation|wavy dash|middle finger|square button|radio button|crossed flags|japanese symbol|name badge|"
    r"eight-|map of japan|cross mark button|check box|double exclamation|exclamation question|currency exchange|"
    r"^sparkle$|white (question|exclamation) mark|no one under|pregnant (man|person)|place of worship|"
    r"chart increasing with yen|distorted face|head shaking"
)
KEPT_SIGNS = frozenset({"wheelchair symbol"})

RECOLOURABLE_SUBGROUPS = _words(
    "heart food-fruit plant-flower transport-ground transport-water transport-air place-building clothing sound music "
    "musical-instrument phone computer light-video book-paper office lock tool household writing mail science sport "
    "game event arrow animal-bird animal-marine animal-bug animal-reptile animal-amphibian arts-crafts other-object "
    "medical hotel time flag"
)
RECOLOURABLE_LABELS = _words(
    "bell pepper|hot pepper|eggplant|mushroom|doughnut|lollipop|candy|cupcake|soft ice cream|cup with straw|teapot|"
    "closed umbrella|umbrella|umbrella with rain drops|umbrella on ground|star|ringed planet|alien monster|unicorn|"
    "tent|cat|dog|horse|fallen leaf|maple leaf|robot|question mark|red question mark|red exclamation mark|"
    "check mark|cross mark|credit card|glowing star|cyclone|comet|house|dragon face|frog|hollow red circle|"
    "heavy dollar sign|plus|splatter|droplet|circus tent|barber pole|carousel horse|military medal",
    "|",
)
FIXED_LABELS = re.compile(
    r"taxi|police|fire engine|ambulance|fire extinguisher|tangerine|watermelon|kiwi|avocado|pineapple|coconut|"
    r"christmas tree|jack-o|banknote|traffic light|stop sign|construction|red envelope|tanabata|pine decoration|"
    r"dolls|place medal|trophy|sports medal|drop of blood|statue|brick|rock$|wood$|mountain|railway track|motorway|"
    r"fireworks|sparkler|rainbow|rosette|cherries|speedboat|motor boat|pinata|badminton|pager|telescope|military medal|"
    r"prayer beads|skis$|blueberries|grapes|mango|olive|melon|film|picture|palette|"
    r"performing|flower playing|mahjong|suit$|white flag|black flag|lemon|lime$|penguin|dove|turkey|honeybee|"
    r"nest|phoenix|wilted|bouquet|sunflower|soap|tooth|moai|nazar|hamsa|cigarette|wheel|oil drum|x-ray|petri|dna|"
    r"satellite|globe|world|mirror ball|green book|blue book|orange book|heart decoration|"
    r"(orange|yellow|green|blue|light blue|purple|pink|brown|black|grey|white) heart|tokyo tower"
)
UNNAMED_SUBGROUPS = _words(
    "place-map place-other sky-weather food-prepared food-asian food-sweet drink dishware cat-face monkey-face "
    "geometric religion warning"
)


def base_id(hexcode: str) -> str:
    """'2764-FE0F' -> '2764': lower case, without variation selectors."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def plain(text: str) -> str:
    """Lower-case ASCII: accents and typographic quotes go."""
    text = text.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


@lru_cache(maxsize=1)
def names() -> Mapping[str, tuple[str, ...]]:
    """NAMES as a table."""
    rows = (line.partition(" = ") for line in NAMES.splitlines())
    return {label: tuple(s.strip() for s in subjects.split(",")) for label, _, subjects in rows}


def subjects_of(label: str, subgroup: str) -> tuple[str, ...]:
    """Noun phrases for an emojibase label, most literal first."""
    name = plain(label)
    if match := re.fullmatch(r"(\w+): (beard|bald|(?:red|curly|white|blond) hair)", name):
        who, what = match.groups()
        return (f"bald {who}",) if what == "bald" else (f"{who} with {'a beard' if what == 'beard' else what}",)
    if name.endswith(" o'clock"):
        return (f"clock showing {name}", "clock")
    known = names().get(name)
    if known is not None:
        return known
    match = re.match(r"(man|woman) (.+)", name)
    if (
        match
        and subgroup in ("person-role", "person-fantasy")
        and not match[2].startswith(("in ", "with ", "wear", "feed"))
    ):
        adjective = {"man": "male", "woman": "female"}[match[1]]
        plainer = names().get(match[2], (match[2],))[0]
        return tuple(dict.fromkeys([f"{adjective} {plainer}", f"{match[1]} {plainer}", f"{adjective} {match[2]}"]))
    for pattern, better in PEOPLE_PHRASES:
        if subgroup.startswith("person"):
            name = re.sub(pattern, better, name)
    return (re.sub(r" button$", "", name),)


def chosen(rows: list[dict[str, Any]], groups: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(id, label, group, subgroup) of the emojibase rows this data set uses."""
    for row in rows:
        if row.get("group") is None:
            continue
        group, subgroup = groups["groups"][str(row["group"])], groups["subgroups"][str(row["subgroup"])]
        label = plain(row["label"])
        if (subgroup in DROPPED_SUBGROUPS and label not in KEPT_SIGNS) or DROPPED_LABELS.search(label):
            continue
        yield base_id(row["hexcode"]), label, group, subgroup


def describe(id: str, style: str, label: str, group: str, subgroup: str, image: U8, mask: NDArray[np.bool_]) -> Record:
    """The record of one picture: its words, its dominant colour and what it can be recoloured to."""
    subjects = subjects_of(label, subgroup)
    dominant = dominant_colour(image, mask)
    if dominant is None:
        return Record(id, style, label, subjects, group, subgroup, "", (), 0, 0, 0)
    d = dominant
    name = colour_name(d.hue, d.saturation, d.value)
    thing = group not in ("smileys-emotion", "people-body") and subgroup not in UNNAMED_SUBGROUPS
    clear = d.share > 0.75 and d.cover > 0.5
    allowed = subgroup in RECOLOURABLE_SUBGROUPS or label in RECOLOURABLE_LABELS
    vivid = d.saturation > 0.35 and d.value > 0.5 and d.share > 0.6 and d.cover > 0.45
    targets: tuple[str, ...] = ()
    if allowed and vivid and not FIXED_LABELS.search(label):
        targets = tuple(
            t for t, goal in TARGETS.items() if t != name and abs((goal.hue - d.hue + 180) % 360 - 180) > 18
        )
    rounded = (round(d.hue, 1), round(d.saturation, 3), round(d.value, 3))
    colour = name if thing and (clear or targets) and name not in ("white", "black") else ""
    return Record(id, style, label, subjects, group, subgroup, colour, targets, *rounded)


# --- sources ---------------------------------------------------------------------------------------------------------

NPM = {
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "flat": "@lobehub/fluent-emoji-flat@1.1.0",
    "emojibase": "emojibase-data@17.0.0",
}
DEBIAN = "fonts-noto-color-emoji"


def npm_file(package: str) -> str:
    """The file name `npm pack` gives '@scope/name@1.0.0'."""
    name, _, version = package.rpartition("@")
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def fetch(sources: Path) -> dict[str, Path]:
    """Paths of the four packages in `sources`, downloaded there where missing."""
    sources.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, package in NPM.items():
        found[key] = sources / npm_file(package)
        if not found[key].exists():
            _download(["npm", "pack", package], sources, found[key].name)
    debs = sorted(sources.glob(f"{DEBIAN}_*.deb"))
    if not debs:
        _download(["apt-get", "download", DEBIAN], sources, f"{DEBIAN}_*.deb")
        debs = sorted(sources.glob(f"{DEBIAN}_*.deb"))
    return {**found, "noto": debs[-1]}


def _download(command: list[str], folder: Path, pattern: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{pattern} is not in {folder} and `{' '.join(command)}` failed: {error}") from error
    if not list(folder.glob(pattern)):
        raise UsageError(f"`{' '.join(command)}` left no {pattern} in {folder}")


def read_tar(stream: io.BufferedIOBase | None, path: Path | None, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Regular files of a tar archive whose name matches; nothing is written to disk."""
    out = {}
    with tarfile.open(name=path, fileobj=stream, mode="r:*") as tar:
        for member in tar:
            if member.isfile() and wanted.search(member.name):
                content = tar.extractfile(member)
                out[member.name] = content.read() if content is not None else b""
    return out


def read_deb(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Matching files of a Debian package: an ar archive with a member data.tar.*."""
    blob = path.read_bytes()
    if not blob.startswith(b"!<arch>\n"):
        raise UsageError(f"{path} is no Debian package")
    at = 8
    while at + 60 <= len(blob):
        name, size = blob[at : at + 16].decode().strip().rstrip("/"), int(blob[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return read_tar(io.BytesIO(blob[at + 60 : at + 60 + size]), None, wanted)
        at += 60 + size + size % 2
    raise UsageError(f"{path} has no member data.tar")


def frame(picture: Image.Image) -> tuple[U8, NDArray[np.bool_]]:
    """RGBA of any size -> (SIZE, SIZE, 3) uint8 on white, MARGIN around the subject, and its (SIZE, SIZE) mask."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise UsageError("an empty picture")
    scale = (SIZE - 2 * MARGIN) / max(box[2] - box[0], box[3] - box[1])
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    corner = ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    image, alpha = Image.new("RGB", (SIZE, SIZE), "white"), Image.new("L", (SIZE, SIZE))
    image.paste(flat.crop(box).resize(size, Image.Resampling.LANCZOS), corner)
    alpha.paste(picture.getchannel("A").crop(box).resize(size, Image.Resampling.LANCZOS), corner)
    return np.asarray(image), np.asarray(alpha) > 127


def fluent_pictures(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Package files -> id -> encoded picture, webp or svg."""
    return {base_id(Path(name).stem): blob for name, blob in files.items()}


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"packing needs {package}: pip install {package}") from error


def noto_pictures(font: bytes) -> dict[str, bytes]:
    """id -> PNG of every code point and ligature in a CBDT colour font."""
    ttf = _need("fontTools.ttLib", "fonttools").TTFont(io.BytesIO(font))
    strike = ttf["CBDT"].strikeData[0]
    code = {glyph: f"{point:x}" for point, glyph in ttf.getBestCmap().items()}
    glyphs = {hexcode: glyph for glyph, hexcode in code.items()}
    for lookup in ttf["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    parts = [code.get(g, "?") for g in (first, *ligature.Component)]
                    glyphs[base_id("-".join(parts))] = ligature.LigGlyph
    out = {}
    for hexcode, glyph in glyphs.items():
        if glyph in strike:
            strike[glyph].ensureDecompiled()
            out[hexcode] = bytes(strike[glyph].imageData)
    return out


def decode_source(blob: bytes) -> Image.Image:
    """A webp, png or svg file as an RGBA picture; svg at four times SIZE."""
    if blob.lstrip()[:4] == b"<svg" or blob[:5] == b"<?xml":
        resvg = _need("resvg_py", "resvg-py")
        blob = bytes(
            resvg.svg_to_bytes(svg_string=blob.decode(), skip_system_fonts=True, width=4 * SIZE, height=4 * SIZE)
        )
    return Image.open(io.BytesIO(blob)).convert("RGBA")


# --- pack and load ---------------------------------------------------------------------------------------------------


def encode(image: U8) -> bytes:
    """Lossless webp."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def write_pack(path: Path, records: list[Record], images: list[bytes], sources: list[dict[str, str]]) -> None:
    """The packed file; written beside `path` first, then renamed."""
    index = {"format": FORMAT, "size": SIZE, "sources": sources, "records": [asdict(r) for r in records]}
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as pack:
        pack.writestr(zipfile.ZipInfo("index.json"), json.dumps(index, separators=(",", ":")))
        for record, blob in zip(records, images, strict=True):
            pack.writestr(zipfile.ZipInfo(f"images/{record.style}/{record.id}.webp"), blob)
    partial.replace(path)


def build(sources: Path, out: Path) -> list[Record]:
    """Read the four packages, write the packed file, return its records."""
    found = fetch(sources)
    meta = read_tar(
        None, found["emojibase"], re.compile(r"package/(en/data|meta/groups)\.json$|package/package\.json$")
    )
    rows = json.loads(meta["package/en/data.json"])
    groups = json.loads(meta["package/meta/groups.json"])
    pictures = {
        style: fluent_pictures(read_tar(None, found[style], re.compile(r"package/assets/.*\.(webp|svg)$")))
        for style in ("3d", "flat")
    }
    font = read_deb(found["noto"], re.compile(r"/NotoColorEmoji\.ttf$"))
    pictures["noto"] = noto_pictures(next(iter(font.values())))
    jobs = [(style, *row) for style in STYLES for row in chosen(rows, groups) if row[0] in pictures[style]]

    def one(job: tuple[str, str, str, str, str]) -> tuple[Record, bytes]:
        style, id, label, group, subgroup = job
        image, mask = frame(decode_source(pictures[style][id]))
        return describe(id, style, label, group, subgroup, image, mask), encode(image)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(one, jobs))
    records = [record for record, _ in done]
    write_pack(out, records, [blob for _, blob in done], [source_entry(path) for path in found.values()])
    return records


def source_entry(path: Path) -> dict[str, str]:
    """File name, digest, and the version and licence that the package itself states."""
    entry = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if path.suffix == ".deb":
        text = next(iter(read_deb(path, re.compile(r"/copyright$")).values())).decode()
        licences = re.findall(r"^Files:\s+(\S+)(?:\n[A-Z ].*)*?\nLicense:\s+(\S+)", text, re.MULTILINE)
        return {**entry, "version": path.name.split("_")[1], "licence": "; ".join(f"{f}: {x}" for f, x in licences)}
    package = json.loads(read_tar(None, path, re.compile(r"package/package\.json$"))["package/package.json"])
    return {**entry, "version": package["version"], "licence": package["license"]}


def read_index(pack: zipfile.ZipFile) -> list[Record]:
    """The records of an open packed file."""
    index = json.loads(pack.read("index.json"))
    if index["format"] != FORMAT:
        raise UsageError(f"packed data has format {index['format']}, this version reads {FORMAT}: pack it again")
    return [Record(**{**r, "subjects": tuple(r["subjects"]), "targets": tuple(r["targets"])}) for r in index["records"]]


def _entries(record: Record, blob: bytes) -> list[tuple[U8, list[str], float, str]]:
    image = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
    if image.shape != (SIZE, SIZE, 3):
        raise UsageError(f"images/{record.style}/{record.id}.webp is {image.shape}, expected {(SIZE, SIZE, 3)}")
    weight = GROUP_WEIGHTS.get(record.group, 1.0)
    out = [(image, captions(record, record.style), weight, record.style)]
    for target in record.targets:
        if words := captions(record, record.style, target):
            out.append((recolour_to(image, record, target), words, weight * RECOLOURED_WEIGHT, record.style))
    return out


def load(path: Path, workers: int = 16) -> Dataset:
    """Every picture of a packed file and its recolourings, in the order of the index.

    Threads, not processes: Pillow and NumPy release the lock, and a trainer that holds a GPU context must not fork.
    Raises UsageError where the file is missing or is no packed file.
    """
    try:
        with zipfile.ZipFile(path) as pack:
            records = read_index(pack)
            blobs = [pack.read(f"images/{r.style}/{r.id}.webp") for r in records]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            entries = [e for part in pool.map(_entries, records, blobs) for e in part]
    except FileNotFoundError as error:
        raise UsageError(f"no packed data at {path}: make it with edgediffusion.export.builtin.data") from error
    except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError, OSError) as error:
        raise UsageError(f"{path} is no packed data or is damaged ({error}): pack it again") from error
    if not entries:
        raise UsageError(f"{path} holds no pictures: pack it again")
    return Dataset(
        images=np.stack([e[0] for e in entries]),
        captions=[e[1] for e in entries],
        weights=np.array([e[2] for e in entries], np.float32),
        styles=[e[3] for e in entries],
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; an error is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="edgediffusion.export.builtin.data", description="Pack the emoji pictures.")
    parser.add_argument("sources", type=Path, help="folder with the packages; missing ones are fetched into it")
    parser.add_argument("out", type=Path, help="the packed file to write")
    options = parser.parse_args(argv)
    try:
        records = build(options.sources, options.out)
    except (EdgeDiffusionError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    counts = {style: sum(r.style == style for r in records) for style in STYLES}
    sys.stderr.write(f"{options.out}: {options.out.stat().st_size} bytes, pictures {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
