-- What the reading scripts share; put before each.
-- KEYS: meta, stream
-- The first message at or behind a sequence: its sequence, timestamp and text; nil where there is none.
local function at(sequence)
  local found = redis.call('XRANGE', KEYS[2], string.format('%d', sequence), '+', 'COUNT', 1)[1]
  if not found then return nil end
  local place, ms = string.match(found[1], '^(%d+)-(%d+)$')
  return tonumber(place), tonumber(ms)
end
-- The lowest sequence from low to high whose timestamp is above ms; high + 1 where none is.
local function first_above(low, high, ms)
  high = high + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local _, found_ms = at(middle)
    if found_ms and found_ms <= ms then low = middle + 1 else high = middle end
  end
  return low
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = redis.call('HMGET', KEYS[1], 'e', 's', 't', 'c', 'ct', 'x', 'a', 'f')
local epoch, last, last_ms = m[1], tonumber(m[2] or 0), tonumber(m[3] or 0)
-- The oldest message that is kept at this moment: retention holds exactly, whatever is still there.
local oldest, gone_ms = last + 1, last_ms
do
  local first = at(0)
  if first then
    oldest = math.max(first, tonumber(m[4] or 0) + 1, last + 1 - tonumber(m[6] or last))
    local cut = now - tonumber(m[7] or now)
    local _, ms = at(oldest)
    if ms and ms <= cut then oldest = first_above(oldest, last, cut) end
    local place, before_ms = at(oldest - 1)
    if place == oldest - 1 then
      gone_ms = before_ms
    else
      -- Not there any more: no later than the oldest that is.
      gone_ms = before_ms or last_ms
    end
  end
  if oldest == 1 then gone_ms = 0 end
end
-- Messages of a range of sequences, in steps, until `take` returns false for one.
local function each(low, high, forward, take)
  while low <= high do
    local part
    if forward then
      part = redis.call('XRANGE', KEYS[2], string.format('%d', low), string.format('%d', high), 'COUNT', 64)
    else
      part = redis.call('XREVRANGE', KEYS[2], string.format('%d', high), string.format('%d', low), 'COUNT', 64)
    end
    if #part == 0 then return end
    for i = 1, #part do
      local place, ms = string.match(part[i][1], '^(%d+)-(%d+)$')
      place, ms = tonumber(place), tonumber(ms)
      if not take(place, ms, part[i][2][2]) then return end
      if forward then low = place + 1 else high = place - 1 end
    end
  end
end
