"""What a trained model does with a video: pictures of its partition and of the blocks a query selects."""
