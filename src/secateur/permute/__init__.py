"""Order the columns of a weight so that an N:M pattern retains as much of its score as it can.

An order is an int64 tensor ``(I,)``: column ``order[p]`` goes to position p, and every M consecutive
positions are a group. Searches know nothing of models: they take a score and return groups of its columns.
``searches.py`` is the table of them, ``orders.py`` what is made of their groups.
"""
