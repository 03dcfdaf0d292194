-- Where a channel stands, and its newest messages.
-- ARGV: 1 messages at most, 2 bytes at most, 3 sequence that is known ('' for none), 4 its epoch, 5 epoch for a channel
--       that has none or one whose numbering has fallen back ('' to change nothing)
-- Returns: epoch, last sequence, last timestamp, newest sequence that is gone, its timestamp, sequence behind which the
--          epoch begins, then sequence, timestamp and text of each message, newest first
local after = 0
local from = tonumber(m[8] or 0)
if ARGV[5] ~= '' then
  if not epoch then
    epoch = ARGV[5]
    redis.call('HSET', KEYS[1], 'e', epoch)
    redis.call('PEXPIRE', KEYS[1], 86400000)
  end
  local known = tonumber(ARGV[3] ~= '' and ARGV[3] or 0)
  if ARGV[4] == epoch and known > last then
    -- A node has seen what is not here: a replica took over that did not have it. Its numbers are not given again.
    epoch, from, last = ARGV[5], known, known
    redis.call('HSET', KEYS[1], 'e', epoch, 's', string.format('%d', last), 'f', string.format('%d', from))
    redis.call('PERSIST', KEYS[1])
  elseif ARGV[4] == epoch then
    after = known
  end
end
if from >= oldest then
  -- Before the epoch numbers may be missing: what is older is for pages alone.
  local _, ms = at(from)
  oldest, gone_ms = from + 1, ms or last_ms
end
local answer = {epoch or '', last, last_ms, oldest - 1, gone_ms, from}
local left, bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
each(math.max(oldest, after + 1), last, false, function(place, ms, text)
  bytes = bytes - #text - 64
  if left == 0 or bytes < 0 then return false end
  left = left - 1
  answer[#answer + 1] = place
  answer[#answer + 1] = ms
  answer[#answer + 1] = text
  return true
end)
return answer
