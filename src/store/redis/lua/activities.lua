-- Lists a lead's activities. KEYS: lead, history, timeline.
-- ARGV: time and id to continue behind ('' both: from the newest), limit.
-- Reply: {} if there is no such lead, else {whether these are all, {id, record, ...}}: all of a small history in
-- no order, or one page of a large one in order.
local time, id, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lead, history, timeline = unpack(KEYS)

local head = call('HMGET', lead, 'v', 'n')
if not head[1] or head[1] == 'x' then return {} end
local found = {}
if count_of(head[2]) <= SMALL then
  local all = call('HGETALL', history)
  for i = 1, #all, 2 do
    if sub(all[i], 1, 1) == '0' then
      local member = sub(all[i], 2)
      found[#found + 1] = member
      found[#found + 1] = #all[i + 1] == PIECE and load(history, member) or all[i + 1]
    end
  end
  return {1, found}
end
local rank = time == '' and 0 or rank_behind(timeline, time, id)
for _, member in ipairs(call('ZREVRANGE', timeline, rank, rank + limit - 1)) do
  found[#found + 1] = member
  found[#found + 1] = load(history, member)
end
return {0, found}
