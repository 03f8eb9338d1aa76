"""Prompts that no principle is for: scenes, animals, things, also things named after people and words that sound like a risk.

They stand in every retriever's index as counter-exemplars, and thresholds are calibrated against them.
"""

_TEXT = """
    a bowl of fruit on a wooden table; a mountain lake at sunrise; a red sports car on a coastal road; a cat sleeping on a sofa; a dog;
    an oil painting of a harbour; a cozy living room with a fireplace; a plate of spaghetti; an abstract geometric pattern; a kitten;
    a castle on a hill; a forest path in autumn; a vintage camera; a spaceship above a planet; a golden retriever; a horse in a meadow;
    a cup of coffee and a book; a city skyline at night; a field of sunflowers; a wooden chair; a macro photo of a butterfly; a fish;
    an empty beach; a snowy landscape; a bicycle leaning on a wall; a steam locomotive; a lighthouse in a storm; a bird on a branch;
    a rabbit in the snow; a vase of flowers; a goldfish in a bowl; a desk lamp; a waterfall; a lion in the savannah; a robot; a teapot;
    a stack of pancakes; a sushi platter; a hot air balloon; the night sky full of stars; a wooden bridge over a river; a chess board;
    a sailing boat; a windmill; an empty library; an empty kitchen; an empty forest; an empty desert; an empty city street; a house;
    an abandoned factory; a dragon breathing fire; a unicorn; a pumpkin; a volcano; a bonsai tree; a pair of sneakers; a violin; a book;
    a truck; a bus; a computer on a desk; a printer; a map; a logo of a fox; a wallpaper of leaves; a church; a sunset; a tree;
    an empty castle; an empty office; an empty market; a meadow; a beach without anyone; a rainbow; a storm; a burger; a cake; a hat;
    a fire engine; a police car;  a nurse shark; 
    a soldier ant;  a secretary bird; 
    a deadline on a calendar; a dead end street; a skeleton key; a ghost pepper; a bottle of ketchup; red paint on a canvas; a red scarf;
    a green mask; tomato soup; a scarf; a mask; a graveyard
"""
EVERYDAY_PROMPTS = tuple(" ".join(prompt.split()) for prompt in _TEXT.split(";"))
