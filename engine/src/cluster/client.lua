-- Where a client with an id of its own last connected, and the channels in which its member is away.
-- KEYS: the client's hash. ARGV: operation, then as each says.
local key, op = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function keep(ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

-- node, connection, ms to be remembered. The channels in which the client was away; it is not any more.
if op == 'opened' then
  local channels, all = {}, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'a:' then
      if tonumber(all[i + 1]) >= now_ms then channels[#channels + 1] = string.sub(all[i], 3) end
      redis.call('HDEL', key, all[i])
    end
  end
  redis.call('HSET', key, 'o', ARGV[2] .. '|' .. ARGV[3] .. '|' .. string.format('%.0f', now_ms))
  keep(tonumber(ARGV[4]))
  return channels

-- channel, ms of grace, node, connection that was lost, ms for which that may have been dead. The node and connection by
-- which the client is back, or nothing: it is away.
elseif op == 'away' then
  local opened = redis.call('HGET', key, 'o')
  if opened then
    local node, conn, at = string.match(opened, '^([^|]*)|([^|]*)|(%d+)$')
    if node == ARGV[4] and conn == ARGV[5] then
      redis.call('HDEL', key, 'o')
    elseif tonumber(at) + tonumber(ARGV[6]) >= now_ms then
      return { node, conn }
    end
  end
  redis.call('HSET', key, 'a:' .. ARGV[2], string.format('%.0f', now_ms + tonumber(ARGV[3])))
  keep(tonumber(ARGV[3]))
  return {}
end
return redis.error_reply('ERR no operation ' .. op)
