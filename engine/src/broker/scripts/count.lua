-- Messages with a timestamp.
-- ARGV: 1 the timestamp
local ms = tonumber(ARGV[1])
if oldest > last then return 0 end
return first_above(oldest, last, ms) - first_above(oldest, last, ms - 1)
