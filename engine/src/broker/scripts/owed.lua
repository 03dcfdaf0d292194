-- Messages that the store is owed for a while already.
-- KEYS: meta, stream, sequences that the store is owed
-- ARGV: 1 for how long at least, ms, 2 messages at most
-- Returns: epoch, then sequence, timestamp and text of each
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {redis.call('HGET', KEYS[1], 'e') or ''}
local owed = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%d', now - ARGV[1]), 'LIMIT', 0, ARGV[2])
for i = 1, #owed do
  local found = redis.call('XRANGE', KEYS[2], owed[i], owed[i])[1]
  if found then
    local place, ms = string.match(found[1], '^(%d+)-(%d+)$')
    answer[#answer + 1] = tonumber(place)
    answer[#answer + 1] = tonumber(ms)
    answer[#answer + 1] = found[2][2]
  else
    -- Removed, or beyond what is kept: there is nothing to be stored any more.
    redis.call('ZREM', KEYS[3], owed[i])
  end
end
return answer
