-- Removes a channel's messages; the numbering goes on.
-- KEYS: and topic
-- Returns how many there were.
if not epoch then return 0 end
redis.call('UNLINK', KEYS[2])
redis.call('HSET', KEYS[1], 'c', string.format('%.0f', last), 'ct', string.format('%.0f', last_ms))
redis.call('SPUBLISH', KEYS[3], string.format('c %.0f %.0f %s\n', last, now, epoch))
return last + 1 - oldest
