-- Reads, with every right that reads need. KEYS: what tells the layout.
return missing_right(KEYS[1], READS) or call('HGET', KEYS[1], 'layout') or ''
