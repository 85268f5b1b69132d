"""English titles and tags for the demo data: a title tells its topic and nothing else.

A title is a topic's subject in one of that topic's phrasings. When these 288 pairs are used up, they come again with
an ending that any topic may have, so no two titles are equal. Tags are generic: only the circle leans towards a topic.
"""

import numpy as np

# topic: (subjects, phrasings)
_TOPICS = {
    "cooking": (
        """
        garlic noodles | tomato soup | chicken curry | mushroom risotto | banana bread | lentil stew | fried
        rice | apple pie | fish tacos | potato gratin | beef dumplings | vegetable lasagne | onion soup |
        pumpkin ravioli | roast chicken | chocolate brownies | pad thai | spinach omelette | cheese souffle |
        lemon cake | pizza dough | ramen broth | butter croissants | pancake batter
        """,
        """
        How to cook {} | Ten-minute {} | My grandmother's recipe for {} | The secret ingredient in {} | Making
        {} from scratch | One-pan {} | A chef tastes my {} | Crispy, golden {} | Recipe of the week: {} | Three
        tasty ways to season {} | Homemade {} and what to serve with it | Kitchen test: {}
        """,
    ),
    "football": (
        """
        a last-minute penalty | the cup final | a forty-metre free kick | the derby | an overhead kick | a
        back-post header | the goalkeeper's double save | a hat-trick | the offside trap | a counter-attack goal
        | the relegation play-off | a solo run past five defenders | the league's top scorer | a red card | the
        national team's striker | a corner kick routine | extra time | the midfield press | a penalty shoot-out
        | the youth team's left winger | a volley from outside the box | the back four | an own goal | the
        captain's farewell match
        """,
        """
        Football analysis: {} | {}, as the stadium saw it | The coach explains {} | Goal of the week and {} |
        Fans go wild at {} | Match highlights: {} | What the referee missed at {} | A football legend on {} |
        The tactics behind {} | Pitch-side camera: {} | Training for {} | The commentator loses his voice at {}
        """,
    ),
    "space": (
        """
        the rings of Saturn | a black hole | the James Webb telescope | the surface of Mars | a solar eclipse |
        the International Space Station | the Milky Way | a rocket launch | Jupiter's red spot | the far side of
        the Moon | a neutron star | the asteroid belt | a lunar landing | the Andromeda galaxy | a comet's tail
        | a distant exoplanet | the Voyager probes | the Orion nebula | a spacewalk | the Perseverance rover | a
        supernova | Europa's icy ocean | a geostationary satellite | the Big Bang
        """,
        """
        What astronomers know about {} | {} seen through a telescope | An astronaut describes {} | New images of
        {} | {} and the scale of the universe | The physics of {} | Mission control and {} | Astronomy night: {}
        | Light years from {} | The orbit and origin of {} | Stargazing guide to {} | The space mission to study
        {}
        """,
    ),
    "pets": (
        """
        a rescue kitten | my lazy tabby cat | a golden retriever puppy | the neighbour's beagle | two sleepy
        hamsters | a talking parrot | our deaf old spaniel | a fluffy rabbit | a clumsy Great Dane | a stray cat
        | the shelter's oldest dog | a guinea pig | a stubborn bulldog | a Siamese cat | a poodle puppy | a pet
        tortoise | a nervous greyhound | a ginger tomcat | a corgi | a cockatiel | a husky that sings | a
        Persian cat | a ferret | a dachshund in a jumper
        """,
        """
        Bringing home {} | The vet meets {} | Teaching tricks to {} | {} refuses to leave the sofa | Bath time
        with {} | What to feed {} | {} hears its name | Cuddles with {} | A new collar for {} | {} begging for
        treats | Pet diary: {} | Adopting {}
        """,
    ),
    "gardening": (
        """
        climbing roses | tomato seedlings | a raised bed | lavender cuttings | a compost heap | tulip bulbs | a
        cherry tree | an overgrown hedge | strawberry plants | a herb border | potted geraniums | a wildflower
        lawn | pruned hydrangeas | runner beans | an old apple orchard | mossy flower pots | a small greenhouse
        | courgette plants | a bamboo screen | sunflower seeds | a shady fern corner | dahlias | a balcony
        vegetable patch | clay soil
        """,
        """
        Gardening tips for {} | When to plant around {} | Watering {} | Slugs love {} | How I prune and feed {}
        | From seed to harvest: {} | The gardener's guide to {} | Fertiliser and sunlight for {} | Weeding
        beside {} | A spring garden with {} | Frost protection for {} | Digging, mulching and {}
        """,
    ),
    "makeup": (
        """
        a smoky eye | matte red lipstick | winged eyeliner | a dewy foundation | cream blush | false lashes |
        glitter eyeshadow | a nude lip | contour and highlighter | bridal makeup | a no-makeup look | brow gel |
        waterproof mascara | a peach blusher palette | concealer for dark circles | a setting powder | glossy
        lips | a bronzed summer look | an everyday primer | a graphic liner look | lip liner | a Halloween face
        paint | a cut crease | tinted moisturiser
        """,
        """
        Makeup tutorial: {} | Get ready with me: {} | A makeup artist's take on {} | {} for sensitive skin |
        Drugstore dupes for {} | Blending {} | The best brushes for {} | Beauty review: {} | {} that lasts all
        night | Flawless skin with {} | Cosmetics haul and {} | Swatches and {}
        """,
    ),
    "cars": (
        """
        a 1967 Mustang | an electric hatchback | a rusty pickup truck | a twin-turbo engine | a Le Mans
        prototype | worn brake pads | a six-speed gearbox | an old Land Rover | a rear-wheel-drive coupe | a
        diesel van | a V8 exhaust | a leaking radiator | a convertible roadster | winter tyres | a hybrid family
        saloon | a drift car | a carburettor | a vintage Porsche | a squeaky clutch | alloy wheels | a
        supercharged sedan | a rally hatchback | a timing belt | a Formula One steering wheel
        """,
        """
        Test drive: {} | The mechanic inspects {} | Restoring {} in my garage | Horsepower and {} | {} at full
        throttle | Oil change, spark plugs and {} | Buying a used car with {} | On the race track with {} |
        Motor show: {} | Under the bonnet: {} | Car review and {} | Engine sounds of {}
        """,
    ),
    "finance": (
        """
        an index fund | credit card debt | a pension plan | compound interest | a fixed-rate mortgage |
        government bonds | a household budget | dividend shares | an emergency fund | the stock market crash |
        income tax | a student loan | a savings account | rising inflation | exchange-traded funds | a rental
        property | currency exchange fees | a small business loan | life insurance | the central bank's rate | a
        stock portfolio | capital gains | an overdraft | cryptocurrency
        """,
        """
        Money matters: {} | How {} affects your bank balance | An investor explains {} | Paying off and planning
        with {} | {} and your retirement | The real cost of {} | Money invested in {} | Personal finance and {}
        | Risk, return and {} | A banker's view of {} | Saving and investing: {} | Spreadsheet tips for {}
        """,
    ),
}

TOPICS = tuple(_TOPICS)

_ENDINGS = """
    | on a rainy Sunday | for beginners | before breakfast | with my sister | without any fuss | on a tiny budget |
    in real time | for the first time | one more time | with a twist | in two minutes | the slow way | , step by step |
    , explained | at last | and why it matters | on a quiet evening | after ten years | with friends |
    the old-fashioned way | , no talking | and a big surprise | at the weekend | for busy people | , a short story |
    like a professional | in winter | and what I learned | and a few mistakes | , part two | in slow motion |
    at midnight | with my neighbour | the hard way | , the full story | on my birthday | as nobody told you |
    before the summer | , questions and answers | after a long break | once and for all
    """

_MOODS = """
    calm | cheerful | curious | dreamy | funny | gentle | hopeful | intense | nostalgic | playful | relaxing | serious
    """
_FORMATS = "short | long | interview | clip | episode | compilation | live"
_CIRCLES = "north | south | east | west | harbour | hillside | riverside | old town"
_CIRCLE_LEAN = 0.15
_ITEMS_PER_SERIES = 40


def draw_titles(topic: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One English title an item, told by its topic alone.

    Args:
        topic: int [N], index into `TOPICS`.
        rng: the stream to draw from.

    Returns:
        N titles, all different.
    """
    titles = [""] * len(topic)
    endings = _phrases(_ENDINGS)
    for index, name in enumerate(TOPICS):
        subjects, phrasings = map(_phrases, _TOPICS[name])
        pairs = [phrasing.format(subject) for phrasing in phrasings for subject in subjects]
        order = rng.permutation(len(pairs))
        items = np.flatnonzero(topic == index)
        for item, card in zip(items, rng.permutation(len(items)), strict=True):
            again, pair = divmod(int(card), len(pairs))
            part, ending = divmod(again, len(endings))
            text = f"{pairs[order[pair]]} {endings[ending]}".rstrip().replace(" ,", ",")
            titles[item] = text[0].upper() + text[1:] + (f" (part {part + 1})" if part else "")
    return titles


def draw_tags(topic: np.ndarray, rng: np.random.Generator) -> list[list[str]]:
    """One to five generic tags an item; only the circle leans, being the topic's own in 15 % of the items.

    Args:
        topic: int [N], index into `TOPICS`.
        rng: the stream to draw from.

    Returns:
        N lists of 1 to 5 tags.
    """
    size = len(topic)
    moods, formats, circles = map(_phrases, (_MOODS, _FORMATS, _CIRCLES))
    leaning = rng.random(size) < _CIRCLE_LEAN
    circle = np.where(leaning, topic, rng.integers(len(circles), size=size))
    kinds = [
        [f"{year}" for year in rng.integers(2014, 2025, size)],
        [moods[mood] for mood in rng.integers(len(moods), size=size)],
        [formats[form] for form in rng.integers(len(formats), size=size)],
        [f"series {number}" for number in rng.integers(1, 2 + size // _ITEMS_PER_SERIES, size)],
        [f"circle {circles[index]}" for index in circle],
    ]
    kept = rng.random((size, len(kinds))) < 0.7
    kept[np.arange(size), rng.integers(len(kinds), size=size)] = True
    return [[kind[item] for kind, keep in zip(kinds, kept[item], strict=True) if keep] for item in range(size)]


def _phrases(text: str) -> list[str]:
    """The phrases of a list written with " | " between them, over several lines."""
    return [" ".join(phrase.split()) for phrase in text.split("|")]
