-- Publishes one message of a channel: recognises its id, numbers it, appends it to the stream, tells all nodes.
-- KEYS: meta, stream, ids (even windows), ids (odd windows), topic, sequences that the store is owed
-- ARGV: 1 id ('' where nobody can have used it), 2 window of ids in ms, 3 messages kept ('' for an ephemeral message),
--       4 age kept in ms, 5 epoch for a channel that has none, 6 message,
--       7 '1' where a store has to have it too, 8 last sequence of the store and 9 its timestamp ('' where not known)
-- Returns: 1 for an id that is known or 0, sequence (0 for none), timestamp, epoch; 2 where nothing was done because
--          only the store can know where the channel stands
local call, format = redis.call, string.format
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = call('HMGET', KEYS[1], 'e', 's', 't', 'w', 'p', 'x', 'a')
local epoch, last, last_ms = m[1], tonumber(m[2] or 0), tonumber(m[3] or 0)
if now < last_ms then now = last_ms end
local from
if ARGV[7] == '1' and not m[2] then
  if ARGV[8] == '' then return {2, 0, 0, ''} end
  last, last_ms = tonumber(ARGV[8]), math.max(last_ms, tonumber(ARGV[9]))
  from = last
  if now < last_ms then now = last_ms end
end
-- `%d`, because a number as it is would be written as a float, and slowly.
local now_text = format('%d', now)
local set = {KEYS[1], 't', now_text}
if not epoch then
  epoch = ARGV[5]
  set[#set + 1] = 'e'
  set[#set + 1] = epoch
end
if from then
  set[#set + 1] = 'f'
  set[#set + 1] = format('%d', from)
end
local persists = ARGV[3] ~= ''
local place = persists and format('%d', last + 1) or '0'
if ARGV[1] ~= '' then
  -- Two hashes take turns, so that whole windows are dropped at once.
  local length = tonumber(ARGV[2])
  local window = math.floor(now / length)
  local ids, before = KEYS[3], KEYS[4]
  if window % 2 == 1 then ids, before = before, ids end
  local used = tonumber(m[4] or -2)
  local known
  if used == window or used == window - 1 then
    known = call('HGET', before, ARGV[1])
  else
    call('UNLINK', before)
  end
  if used ~= window then
    call('UNLINK', ids)
    set[#set + 1] = 'w'
    set[#set + 1] = format('%d', window)
  end
  if not known and call('HSETNX', ids, ARGV[1], place .. ' ' .. now_text) == 0 then
    known = call('HGET', ids, ARGV[1])
  end
  if known then
    local sequence, ms = string.match(known, '^(%d+) (%d+)$')
    return {1, tonumber(sequence), tonumber(ms), epoch}
  end
  if used ~= window then call('PEXPIRE', ids, 2 * length) end
end
local kind, sequence = 'e', 0
if persists then
  kind, sequence = 's', last + 1
  -- A little more than is kept, so that the newest message that is gone can be told. Whole nodes are dropped.
  call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3] + 1, place .. '-' .. now_text, 'm', ARGV[6])
  if ARGV[7] == '1' then call('ZADD', KEYS[6], now_text, place) end
  set[#set + 1] = 's'
  set[#set + 1] = place
  if m[6] ~= ARGV[3] or m[7] ~= ARGV[4] then
    set[#set + 1] = 'x'
    set[#set + 1] = ARGV[3]
    set[#set + 1] = 'a'
    set[#set + 1] = ARGV[4]
  end
  local age = tonumber(ARGV[4])
  if sequence % 64 == 0 then
    local cut = now - age
    local function is_old(entry)
      return tonumber(string.match(entry[1], '-(%d+)$')) <= cut
    end
    -- Mostly the oldest one is young enough, and the others need not be looked at.
    local oldest = call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
    if oldest and is_old(oldest) then
      local gone
      for _, entry in ipairs(call('XRANGE', KEYS[2], '-', '+', 'COUNT', 129)) do
        if not is_old(entry) then break end
        gone = entry[1]
      end
      call('XTRIM', KEYS[2], 'MINID', gone)
    end
  end
  -- A channel that falls silent goes by itself: its messages when they are too old, its place a week later.
  local kept = tonumber(m[5] or 0)
  if now - kept > 60000 or m[7] ~= ARGV[4] then
    call('PEXPIRE', KEYS[2], age + 120000)
    call('PEXPIRE', KEYS[1], age + 604800000)
    set[#set + 1] = 'p'
    set[#set + 1] = now_text
  end
elseif not m[1] then
  call('HSET', unpack(set))
  call('PEXPIRE', KEYS[1], 86400000)
end
call('HSET', unpack(set))
call('SPUBLISH', KEYS[5], kind .. ' ' .. place .. ' ' .. now_text .. ' ' .. epoch .. '\n' .. ARGV[6])
return {0, sequence, now, epoch}
