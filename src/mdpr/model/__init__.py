"""The frozen CLIP, the prompts put into it, and the router. Shapes used in every file of this room:

B images   C classes   V dimensions (5)   d joint embedding width   H router heads   e = d / H
n context tokens   T text tokens   J prompted layers   w width of a tower
"""
