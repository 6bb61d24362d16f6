"""What a row is: how many tokens each objective takes and gives, and how they become inputs and targets. Numpy only."""
