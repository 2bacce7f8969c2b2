-- Writes nothing, and yet is refused by whatever would refuse a change: a server that is a replica, has no memory or cannot
-- write to its disk; one that does not have the key's slot; a user who lacks a right. KEYS: one of the partition.
-- Reply: Redis's time.
return missing_right(KEYS[1], READS, WRITES) or call('TIME')
