-- Lists the leads of a workspace in one partition. KEYS: workspace index.
-- ARGV: time and lead to continue behind ('' both: from the first), limit.
-- Reply: {lead, time, ...}, latest activity first.
local rank = ARGV[1] == '' and 0 or rank_behind(KEYS[1], ARGV[1], ARGV[2])
return call('ZREVRANGE', KEYS[1], rank, rank + ARGV[3] - 1, 'WITHSCORES')
