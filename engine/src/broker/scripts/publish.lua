-- Publishes one message of a channel: recognises its id, numbers it, appends it to the stream, tells all nodes.
-- KEYS: meta, stream, ids (even windows), ids (odd windows), topic
-- ARGV: 1 id ('' where nobody can have used it), 2 window of ids in ms, 3 messages kept ('' for an ephemeral message),
--       4 age kept in ms, 5 epoch for a channel that has none, 6 message
-- Returns: 1 for an id that is known or 0, sequence (0 for none), timestamp, epoch
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = redis.call('HMGET', KEYS[1], 'e', 's', 't', 'w', 'p', 'x', 'a')
local epoch, last, last_ms = m[1], tonumber(m[2] or 0), tonumber(m[3] or 0)
if now < last_ms then now = last_ms end
local set = {KEYS[1], 't', string.format('%.0f', now)}
if not epoch then
  epoch = ARGV[5]
  set[#set + 1] = 'e'
  set[#set + 1] = epoch
end
local ids
if ARGV[1] ~= '' then
  -- Two hashes take turns, so that whole windows are dropped at once.
  local length = tonumber(ARGV[2])
  local window = math.floor(now / length)
  local before
  if window % 2 == 0 then ids, before = KEYS[3], KEYS[4] else ids, before = KEYS[4], KEYS[3] end
  local used = tonumber(m[4] or -2)
  if used ~= window then
    redis.call('UNLINK', ids)
    if used ~= window - 1 then redis.call('UNLINK', before) end
    set[#set + 1] = 'w'
    set[#set + 1] = string.format('%.0f', window)
  end
  local known = redis.call('HGET', ids, ARGV[1]) or redis.call('HGET', before, ARGV[1])
  if known then
    local sequence, ms = string.match(known, '^(%d+) (%d+)$')
    return {1, tonumber(sequence), tonumber(ms), epoch}
  end
  local place = 0
  if ARGV[3] ~= '' then place = last + 1 end
  redis.call('HSET', ids, ARGV[1], string.format('%.0f %.0f', place, now))
  if used ~= window then redis.call('PEXPIRE', ids, 2 * length) end
end
local kind, sequence = 'e', 0
if ARGV[3] ~= '' then
  kind, sequence = 's', last + 1
  local most, age = tonumber(ARGV[3]), tonumber(ARGV[4])
  -- A little more than is kept, so that the newest message that is gone can be told. Whole nodes are dropped.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', string.format('%.0f', most + 1),
    string.format('%.0f-%.0f', sequence, now), 'm', ARGV[6])
  set[#set + 1] = 's'
  set[#set + 1] = string.format('%.0f', sequence)
  if m[6] ~= ARGV[3] or m[7] ~= ARGV[4] then
    set[#set + 1] = 'x'
    set[#set + 1] = ARGV[3]
    set[#set + 1] = 'a'
    set[#set + 1] = ARGV[4]
  end
  if sequence % 64 == 0 then
    local old = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 129)
    local gone
    for i = 1, #old do
      local place, ms = string.match(old[i][1], '^(%d+)-(%d+)$')
      if tonumber(ms) > now - age then break end
      gone = place
    end
    if gone then redis.call('XTRIM', KEYS[2], 'MINID', gone) end
  end
  -- A channel that falls silent goes by itself: its messages when they are too old, its place a week later.
  local kept = tonumber(m[5] or 0)
  if now - kept > 60000 or m[7] ~= ARGV[4] then
    redis.call('PEXPIRE', KEYS[2], age + 120000)
    redis.call('PEXPIRE', KEYS[1], age + 604800000)
    set[#set + 1] = 'p'
    set[#set + 1] = string.format('%.0f', now)
  end
elseif not m[1] then
  redis.call('HSET', unpack(set))
  redis.call('PEXPIRE', KEYS[1], 86400000)
end
redis.call('HSET', unpack(set))
redis.call('SPUBLISH', KEYS[5],
  string.format('%s %.0f %.0f %s\n', kind, sequence, now, epoch) .. ARGV[6])
return {0, sequence, now, epoch}
