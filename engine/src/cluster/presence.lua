-- Members of one channel, held by nodes. See shardwire_proto::cluster::wire for what is written where.
-- KEYS: the channel's hash of members, its topic. ARGV: operation, node, then as each says.
local key, topic, op, node = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- Who holds a member: node ids with commas between, or "~<deadline>" while its client may come back.
local function holders(client) return redis.call('HGET', key, 'h:' .. client) or '' end
local function is_away(held) return string.sub(held, 1, 1) == '~' end
local function with(held)
  if held == '' or is_away(held) then return node end
  for one in string.gmatch(held, '[^,]+') do
    if one == node then return held end
  end
  return held .. ',' .. node
end
local function without(held)
  local left, found = {}, false
  for one in string.gmatch(held, '[^,]+') do
    if one == node then found = true else left[#left + 1] = one end
  end
  return table.concat(left, ','), found
end

-- Numbers a change and tells all nodes. The last member's leave ends the epoch.
local function tell(kind, client, joined, state)
  local epoch = redis.call('HGET', key, 'e')
  if not epoch then
    epoch = string.format('%.0f', time[1] * 1000000 + time[2])
    redis.call('HSET', key, 'e', epoch)
  end
  local version = redis.call('HINCRBY', key, 'v', 1)
  local count = redis.call('HGET', key, 'n')
  redis.call('SPUBLISH', topic, 'P{"e":' .. epoch .. ',"v":' .. version .. ',"k":"' .. kind .. '","n":' .. count
    .. ',"c":' .. cjson.encode(client) .. ',"j":' .. joined .. ',"s":' .. cjson.encode(state) .. '}')
  if count == '0' then redis.call('DEL', key) end
  return { epoch, tostring(version) }
end

local function position()
  return { redis.call('HGET', key, 'e') or '0', redis.call('HGET', key, 'v') or '0' }
end

local function enter(client, joined, state)
  redis.call('HSET', key, 'm:' .. client, joined .. ':' .. state, 'h:' .. client, node)
  redis.call('HINCRBY', key, 'n', 1)
  return tell('enter', client, joined, state)
end

local function remove(client)
  local member = redis.call('HGET', key, 'm:' .. client)
  if not member then return position() end
  redis.call('HDEL', key, 'm:' .. client, 'h:' .. client)
  redis.call('HINCRBY', key, 'n', -1)
  local joined, state = string.match(member, '^(%d+):(.*)$')
  return tell('leave', client, joined, state)
end

-- This node lets go: the member leaves where nobody else holds it.
local function release(client)
  local left, found = without(holders(client))
  if not found then return position() end
  if left == '' then return remove(client) end
  redis.call('HSET', key, 'h:' .. client, left)
  return position()
end

local function clients_of_node()
  local found, all = {}, redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'h:' then
      local _, holds = without(all[i + 1])
      if holds then found[#found + 1] = string.sub(all[i], 3) end
    end
  end
  return found
end

-- client, state, most members (0: any number). Answers where the change is, or false when it would be one too many.
if op == 'put' then
  local client, state, most = ARGV[3], ARGV[4], tonumber(ARGV[5])
  local member = redis.call('HGET', key, 'm:' .. client)
  if not member then
    if most > 0 and tonumber(redis.call('HGET', key, 'n') or '0') >= most then return false end
    return enter(client, string.format('%.0f', now_ms), state)
  end
  local joined = string.match(member, '^(%d+):')
  redis.call('HSET', key, 'm:' .. client, joined .. ':' .. state, 'h:' .. client, with(holders(client)))
  return tell('update', client, joined, state)

-- client. One that is away leaves too.
elseif op == 'leave' then
  if is_away(holders(ARGV[3])) then return remove(ARGV[3]) end
  return release(ARGV[3])

-- client, ms. 1 when the member is away from here on.
elseif op == 'away' then
  local left, found = without(holders(ARGV[3]))
  if not found then return 0 end
  if left == '' then
    redis.call('HSET', key, 'h:' .. ARGV[3], '~' .. string.format('%.0f', now_ms + tonumber(ARGV[4])))
    return 1
  end
  redis.call('HSET', key, 'h:' .. ARGV[3], left)
  return 0

-- client. 1 when it was away and the node holds it from here on.
elseif op == 'attach' then
  if not is_away(holders(ARGV[3])) then return 0 end
  redis.call('HSET', key, 'h:' .. ARGV[3], node)
  return 1

-- client. 1 when nothing is left to wait for.
elseif op == 'expire' then
  local held = holders(ARGV[3])
  if not is_away(held) then return 1 end
  if tonumber(string.sub(held, 2)) > now_ms then return 0 end
  remove(ARGV[3])
  return 1

-- The node is dead: all that it holds leaves, unless others hold it. How many did.
elseif op == 'reap' then
  local clients = clients_of_node()
  for _, client in ipairs(clients) do release(client) end
  return #clients

-- client, joined (0: now), state of each member that the node holds; it holds no others.
elseif op == 'sync' then
  local held = {}
  for i = 3, #ARGV, 3 do held[ARGV[i]] = true end
  for _, client in ipairs(clients_of_node()) do
    if not held[client] then release(client) end
  end
  for i = 3, #ARGV, 3 do
    local client, joined, state = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if redis.call('HEXISTS', key, 'm:' .. client) == 1 then
      redis.call('HSET', key, 'h:' .. client, with(holders(client)))
    else
      if joined == '0' then joined = string.format('%.0f', now_ms) end
      enter(client, joined, state)
    end
  end
  return position()

-- Redis's time (us), and all fields.
elseif op == 'snapshot' then
  return { string.format('%.0f', time[1] * 1000000 + time[2]), redis.call('HGETALL', key) }
end
return redis.error_reply('ERR no operation ' .. op)
