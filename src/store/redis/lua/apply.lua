-- Applies changes: each wholly or not at all, whatever becomes of the others of the batch.
-- KEYS: six for each change: lead, history, timeline, details, workspace index, feed.
-- ARGV: history cap, feed length; then for each change, as few as possible since each costs 0.15 µs:
--   now, lead id, workspace, shape (bytes: kind, then two each: counts, details, times, and whether details expect)
--   kind > 0: action id, record, time        kind > 1: the record it takes the place of
--   kind 3: version that this is true of, first time, latest time, latest action
--   counts: field, delta, ...   times (kind 3 only): field, time, ...   details: key, [expected], value, ...
-- Kinds: 0 no activity, 1 a new one, 2 one in the place of another, 3 the same, where extremes may recede.
-- Replies, one for each change:
--   {A, version} applied    {U, version} nothing new     {D} deleted    {W} other workspace    {O} too old
--   {S, version, workspace, first, old activity, old details...} not what was expected: nothing was written
--   {E, message} a key of the wrong type: nothing was written
local A, K = ARGV, KEYS
local cap, feed_length = tonumber(A[1]), A[2]
local lacks = missing_right(K[1], READS, WRITES)
if lacks then return lacks end

local function stamp(version)
  local number, bytes = tonumber(version), {}
  for i = 6, 1, -1 do
    bytes[i] = number % 256
    number = math.floor(number / 256)
  end
  return string.char(unpack(bytes))
end

-- An id as text: UUIDs are packed into 16 bytes.
local function text(id)
  if #id == 16 then
    local hex = string.gsub(id, '.', function(c) return string.format('%02x', byte(c)) end)
    return table.concat({sub(hex, 1, 8), sub(hex, 9, 12), sub(hex, 13, 16), sub(hex, 17, 20), sub(hex, 21)}, '-')
  end
  return byte(id, -1) == 255 and sub(id, 1, -2) or id
end

-- Whether one id stands before another as text. Two UUIDs compare the same when they are packed.
local function before(a, b)
  if #a == 16 and #b == 16 then return less(a, b) end
  return less(text(a), text(b))
end

local function pieces(id, record)
  if #record > LONGEST_IN_PIECES then return {'0' .. id, record} end
  local fields = {}
  for n = 0, math.ceil(#record / PIECE) - 1 do
    fields[#fields + 1] = n .. id
    fields[#fields + 1] = sub(record, n * PIECE + 1, (n + 1) * PIECE)
  end
  return fields
end

local function forget(history, id)
  call('HDEL', history, '0' .. id, '1' .. id, '2' .. id, '3' .. id)
end

local function order(history, timeline, count, id, time)
  if count > SMALL + 1 then return try('ZADD', timeline, time, id) end
  local all, scores = call('HGETALL', history), {}
  for i = 1, #all, 2 do
    if sub(all[i], 1, 1) == '0' then
      scores[#scores + 1] = string.format('%.0f', time_of(all[i + 1]))
      scores[#scores + 1] = sub(all[i], 2)
    end
  end
  return try('ZADD', timeline, unpack(scores))
end

-- Drops the oldest activities; their times are remembered as the floor, for they cannot be told from new ones.
local function trim(history, timeline, count)
  local oldest = call('ZPOPMIN', timeline, count)
  for i = 1, #oldest, 2 do forget(history, oldest[i]) end
  return oldest[#oldest], #oldest / 2
end

-- What is stored where the change would write: nothing was written, the caller thinks again.
local function seen(head, lead, history, details, id, adds, stop, stride)
  local reply = {'S', head[1] or '0', head[2] or '', call('HGET', lead, 'f') or '', id and load(history, id) or ''}
  for i = adds, stop, stride do reply[#reply + 1] = call('HGET', details, A[i]) or '' end
  return reply
end

-- Takes back what was written before something failed or disagreed. Only the lead's own hash, which is written
-- last and was read before, needs no way back.
local function undo_history(history, id, expected)
  forget(history, id)
  if expected then call('HSET', history, unpack(pieces(id, expected))) end
end
local function undo_details(details, adds, stop, stride)
  for i = adds, stop, stride do
    if stride == 2 or A[i + 1] == '' then call('HDEL', details, A[i]) else call('HSET', details, A[i], A[i + 1]) end
  end
end

-- Writes several details, or one that is expected to be there. Returns 1 if they were as expected, else 0.
local function put_details(details, adds, stop, stride)
  local fields, values = {}, {}
  for i = adds, stop, stride do
    fields[#fields + 1] = A[i]
    values[#values + 1] = A[i]
    values[#values + 1] = A[i + stride - 1]
  end
  local present = try('HMGET', details, unpack(fields))
  if present.err then return present end
  for i = 1, #fields do
    if (present[i] or '') ~= (stride == 3 and A[adds + 3 * i - 2] or '') then return 0 end
  end
  call('HSET', details, unpack(values))
  return 1
end

-- This is the hot path of the whole service. It makes no closures: what they capture costs more than the calls.
-- Counts stand at `counts`, times at `times`, details at `adds` to `stop`, `stride` apart.
local function apply(k, a, kind, counts, times, adds, stop, stride)
  local lead, history, details = K[k + 1], K[k + 2], K[k + 4]
  local now, lead_id, workspace = A[a], A[a + 1], A[a + 2]
  local id, record, time, expected, absolute
  if kind > 0 then id, record, time = A[a + 4], A[a + 5], A[a + 6] end
  if kind > 1 then expected = A[a + 7] end
  if kind > 2 then absolute = A[a + 8] end

  local head, latest_message
  if kind == 1 and times - counts == 4 then
    -- An action with messages of one channel and direction: most of them.
    latest_message = 't' .. sub(A[counts + 2], 2)
    head = try('HMGET', lead, 'v', 'w', 'l', 'n', A[counts], A[counts + 2], latest_message)
  else
    local ask = {'v', 'w', 'l', 'n'}
    for i = counts, times - 1, 2 do ask[#ask + 1] = A[i] end
    if not absolute then
      for i = counts, times - 1, 2 do
        if byte(A[i]) == 109 then ask[#ask + 1] = 't' .. sub(A[i], 2) end
      end
    end
    head = try('HMGET', lead, unpack(ask))
  end
  if head.err then return {'E', head.err} end
  local previous, known, latest = head[1], head[2], head[3]
  if previous == 'x' then return {'D'} end
  if known and workspace ~= '' and known ~= workspace then return {'W'} end
  if absolute and absolute ~= previous then return seen(head, lead, history, details, id, adds, stop, stride) end
  local learns = workspace ~= '' and not known
  if kind == 0 and adds > stop and previous and not learns then return {'U', previous} end
  -- How many activities there are; behind a blank the floor, once some were trimmed.
  local count, floor = tonumber(head[4] or 0), nil
  if not count then
    count, floor = string.match(head[4], '^(%d+) (%d+)$')
  end
  if floor and kind == 1 and tonumber(time) <= tonumber(floor) then
    if call('HEXISTS', history, '0' .. id) == 0 then return {'O'} end
    return seen(head, lead, history, details, id, adds, stop, stride)
  end

  local version = now
  if previous and tonumber(previous) >= tonumber(now) then
    version = string.format('%.0f', previous + 1)
    local stamped = stamp(version)
    if id then record = stamped .. sub(record, 7) end
    for i = adds + stride - 1, stop, stride do A[i] = stamped .. sub(A[i], 7) end
  end

  if kind == 1 then
    local whole = #record <= PIECE or #record > LONGEST_IN_PIECES
    local new = try('HSETNX', history, '0' .. id, whole and record or sub(record, 1, PIECE))
    if new == 0 then return seen(head, lead, history, details, id, adds, stop, stride) end
    if new ~= 1 then return {'E', new.err} end
    if not whole then call('HSET', history, unpack(pieces(id, record), 3)) end
  elseif kind > 1 then
    -- One that is the first by now can only give way to a change that was told the whole history.
    if load(history, id) ~= expected or kind == 2 and tonumber(call('HGET', lead, 'f')) == time_of(expected) then
      return seen(head, lead, history, details, id, adds, stop, stride)
    end
    forget(history, id)
    call('HSET', history, unpack(pieces(id, record)))
  end
  if adds <= stop then
    local new
    if stride == 2 and adds + 1 == stop then
      new = try('HSETNX', details, A[adds], A[stop])
    else
      new = put_details(details, adds, stop, stride)
    end
    if new ~= 1 then
      if id then undo_history(history, id, expected) end
      if new ~= 0 then return {'E', new.err} end
      return seen(head, lead, history, details, id, adds, stop, stride)
    end
  end

  local set, n, moved = {'HSET', lead, 'v', version}, 4, false
  if absolute then
    moved = A[a + 10] ~= latest
    latest = A[a + 10]
    set[5], set[6], set[7], set[8], set[9], set[10] = 'f', A[a + 9], 'l', latest, 'i', A[a + 11]
    set[11], set[12], n = 'o', version, 12
  elseif id then
    local at, then_at = tonumber(time), tonumber(latest or -1)
    local ties = at == then_at and call('HGET', lead, 'i')
    if not latest or at < then_at and at < tonumber(call('HGET', lead, 'f')) then
      set[5], set[6], n = 'f', time, 6
    end
    if at > then_at or ties and (ties == id or before(ties, id)) then
      moved = at > then_at
      latest = time
      set[n + 1], set[n + 2], set[n + 3], set[n + 4], n = 'l', time, 'i', id, n + 4
    else
      set[n + 1], set[n + 2], n = 'o', version, n + 2
    end
  end
  local failed, indexed
  if workspace ~= '' and (moved or learns) then
    failed = try('ZADD', K[k + 5], latest or 0, lead_id)
    indexed = type(failed) == 'number'
    if indexed then failed = nil end
  end
  if not failed then
    local of = known or workspace
    failed = try('XADD', K[k + 6], 'MAXLEN', '~', feed_length, '*', 'c',
      version .. ' ' .. (previous or '0') .. ' ' .. #of .. ' ' .. of .. ' ' .. lead_id)
    if type(failed) == 'string' then failed = nil end
  end
  if failed then
    if id then undo_history(history, id, expected) end
    undo_details(details, adds, stop, stride)
    if indexed and previous and not learns then
      call('ZADD', K[k + 5], head[3] or 0, lead_id)
    elseif indexed then
      call('ZREM', K[k + 5], lead_id)
    end
    return {'E', failed.err}
  end

  if learns then
    set[n + 1], set[n + 2], n = 'w', workspace, n + 2
  end
  if kind == 1 then
    count = count + 1
    if count > SMALL then order(history, K[k + 3], count, id, time) end
    if count > cap + math.max(1, math.min(64, cap / 8)) then
      local trimmed, dropped = trim(history, K[k + 3], count - cap)
      count, floor = count - dropped, trimmed
    end
    set[n + 1], set[n + 2], n = 'n', floor and count .. ' ' .. floor or count, n + 2
  elseif kind > 1 and tonumber(count) > SMALL then
    try('ZADD', K[k + 3], time, id)
  end
  local gone
  local at = 5
  for i = counts, times - 1, 2 do
    local value = (head[at] or 0) + A[i + 1]
    if value == 0 then
      gone = gone or {}
      gone[#gone + 1] = A[i]
      if byte(A[i]) == 109 then gone[#gone + 1] = 't' .. sub(A[i], 2) end -- m|…: its time goes with it
    else
      set[n + 1], set[n + 2], n = A[i], value, n + 2
    end
    at = at + 1
  end
  if absolute then
    for i = times, adds - 1 do set[n + 1], n = A[i], n + 1 end
  else
    for i = counts, times - 1, 2 do
      if byte(A[i]) == 109 then
        if not head[at] or tonumber(head[at]) < tonumber(time) then
          set[n + 1], set[n + 2], n = latest_message or 't' .. sub(A[i], 2), time, n + 2
        end
        at = at + 1
      end
    end
  end
  call(unpack(set, 1, n))
  if gone then call('HDEL', lead, unpack(gone)) end
  return {'A', version}
end

local SKIP = {[0] = 4, 7, 8, 12}
local replies, a = {}, 3
for change = 1, #K / 6 do
  local kind, c1, c2, d1, d2, t1, t2, expects = byte(A[a + 3], 1, 8)
  local counts = a + SKIP[kind]
  local times = counts + 2 * (c1 * 256 + c2)
  local adds = times + 2 * (t1 * 256 + t2)
  local stride = 2 + expects
  local stop = adds + stride * (d1 * 256 + d2) - 1
  local ok, reply = pcall(apply, (change - 1) * 6, a, kind, counts, times, adds, stop, stride)
  replies[change] = ok and reply or {'E', type(reply) == 'table' and reply.err or tostring(reply)}
  a = stop + 1
end
return replies
