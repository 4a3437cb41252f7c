//! Each event by itself: what becomes of translations, sptes, logs and tracked pages.
