-- A page of a channel's messages.
-- ARGV: 1 after sequence, 2 before sequence, 3 after ms, 4 before ms (each exclusive, '' for none), 5 '1' for oldest
--       first, 6 messages, 7 more of the last one's timestamp, 8 bytes
-- Returns: 1 where there are more in that direction or 0, then sequence, timestamp and text of each
local low, high = oldest, last
if ARGV[1] ~= '' then low = math.max(low, tonumber(ARGV[1]) + 1) end
if ARGV[2] ~= '' then high = math.min(high, tonumber(ARGV[2]) - 1) end
if ARGV[3] ~= '' and low <= high then low = first_above(low, high, tonumber(ARGV[3])) end
if ARGV[4] ~= '' and low <= high then high = first_above(low, high, tonumber(ARGV[4]) - 1) - 1 end
local left, ties, bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local answer = {0}
local last_taken
each(low, high, ARGV[5] == '1', function(place, ms, text)
  bytes = bytes - #text - 64
  local fits = left > 0 or (ties > 0 and ms == last_taken)
  if not fits or (bytes < 0 and #answer > 1) then
    answer[1] = 1
    return false
  end
  if left > 0 then left = left - 1 else ties = ties - 1 end
  last_taken = ms
  answer[#answer + 1] = place
  answer[#answer + 1] = ms
  answer[#answer + 1] = text
  return true
end)
return answer
