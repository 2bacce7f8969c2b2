-- Deletes a lead and leaves a tombstone. KEYS: lead, history, timeline, details, workspace index, feed.
-- ARGV: lead id, workspace that the index is of, now in ms, tombstone in s, feed length.
-- Reply: 1 deleted, 0 there is none, or the workspace if it is another.
local lead, history, timeline, details, index, feed = unpack(KEYS)
local lead_id, workspace = ARGV[1], ARGV[2]

local head = call('HMGET', lead, 'v', 'x', 'w')
if not head[1] or head[2] then return 0 end
if (head[3] or '') ~= workspace then return head[3] or '' end
if workspace ~= '' then call('ZREM', index, lead_id) end
call('XADD', feed, 'MAXLEN', '~', ARGV[5], '*', 'l', lead_id, 'w', workspace, 'v', '0', 'p', head[1])
call('UNLINK', lead, history, timeline, details)
call('HSET', lead, 'x', ARGV[3])
call('EXPIRE', lead, ARGV[4])
return 1
