"""The light ranker: clicks and watch time from sparse ids and dense features, calibrated and exported for serving."""
