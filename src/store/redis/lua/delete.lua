-- Deletes a lead and leaves a tombstone. KEYS: lead, history, timeline, details, workspace index, feed.
-- ARGV: lead id, workspace that the index is of, now in ms, tombstone in s, feed length, and 1 where a deletion that was
-- acknowledged is repeated: it leaves its tombstone even if there is no lead (any more, or yet).
-- Reply: 1 deleted, 0 there is none, or the workspace if it is another.
local lead, history, timeline, details, index, feed = unpack(KEYS)
local lead_id, workspace = ARGV[1], ARGV[2]

local lacks = missing_right(lead, READS, WRITES)
if lacks then return lacks end

local function leave_tombstone()
  call('HSET', lead, 'v', 'x', 'x', ARGV[3])
  call('EXPIRE', lead, ARGV[4])
end

local head = call('HMGET', lead, 'v', 'w')
if not head[1] and ARGV[6] == '1' then leave_tombstone() end
if not head[1] or head[1] == 'x' then return 0 end
if (head[2] or '') ~= workspace then return head[2] or '' end
if workspace ~= '' then call('ZREM', index, lead_id) end
call('XADD', feed, 'MAXLEN', '~', ARGV[5], '*', 'c', '0 ' .. head[1] .. ' ' .. #workspace .. ' ' .. workspace .. ' ' .. lead_id)
call('UNLINK', lead, history, timeline, details)
leave_tombstone()
return 1
