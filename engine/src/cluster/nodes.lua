-- The nodes and their leases. KEYS: the hash of nodes. ARGV: operation, then as each says.
local key, op = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

-- node, description. Whether it was known, Redis's time, and all nodes: "<ms of the last beat>:<description>" by id.
if op == 'beat' then
  local known = redis.call('HEXISTS', key, ARGV[2])
  redis.call('HSET', key, ARGV[2], now_ms .. ':' .. ARGV[3])
  return { known, now_ms, redis.call('HGETALL', key) }

-- node, ms of lease. 1 when the lease is over, or was; the node is no longer among them.
elseif op == 'bury' then
  local entry = redis.call('HGET', key, ARGV[2])
  if not entry then return 1 end
  if tonumber(string.match(entry, '^(%d+)')) + tonumber(ARGV[3]) >= tonumber(now_ms) then return 0 end
  redis.call('HDEL', key, ARGV[2])
  return 1
end
return redis.error_reply('ERR no operation ' .. op)
