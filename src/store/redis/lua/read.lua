-- Reads a lead in one state. KEYS: lead, history, timeline, details.
-- ARGV: since ('' or a version; -1: every activity), most activities to tell.
-- Reply: {} if there is none, else {lead's fields, details, latest activity, missed {id, record, ...}, complete}
local since, most = ARGV[1], tonumber(ARGV[2])
local lead, history, timeline, details = unpack(KEYS)

local fields = call('HGETALL', lead)
if #fields == 0 then return {} end
local head = {}
for i = 1, #fields, 2 do head[fields[i]] = fields[i + 1] end
if head.v == 'x' then return {} end
local latest = head.i and load(history, head.i) or ''
local missed, complete = {}, 1

local function tell(id, record)
  missed[#missed + 1] = id
  missed[#missed + 1] = record
end
local function all_in_history(wanted)
  local all = call('HGETALL', history)
  for i = 1, #all, 2 do
    if sub(all[i], 1, 1) == '0' and version_of(all[i + 1]) > wanted then
      local id = sub(all[i], 2)
      tell(id, #all[i + 1] == PIECE and load(history, id) or all[i + 1])
    end
  end
end

if since == '-1' then
  all_in_history(-1)
elseif since ~= '' and tonumber(since) < tonumber(head.v) then
  since = tonumber(since)
  if count_of(head.n) <= SMALL then
    all_in_history(since)
  else
    -- Newest first, until one that was known: the rest is older still, if nothing came late meanwhile.
    local ids, known = call('ZREVRANGE', timeline, 0, most - 1), false
    for _, id in ipairs(ids) do
      local record = load(history, id)
      if record ~= '' then
        if version_of(record) > since then tell(id, record) else known = true break end
      end
    end
    if not known or tonumber(head.o or 0) > since then complete = 0 end
  end
end
return {fields, call('HGETALL', details), latest, missed, complete}
