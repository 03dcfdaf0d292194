-- Removes a channel's messages; the numbering goes on.
-- KEYS: and topic
-- Returns how many there were.
if not epoch then return 0 end
redis.call('UNLINK', KEYS[2])
redis.call('HSET', KEYS[1], 'c', string.format('%d', last), 'ct', string.format('%d', last_ms))
redis.call('SPUBLISH', KEYS[3], string.format('c %d %d %s\n', last, now, epoch))
return last + 1 - oldest
