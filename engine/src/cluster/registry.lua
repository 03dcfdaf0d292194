-- Apps and credentials as all nodes have them. KEYS: the hash of documents. ARGV: operation, then as each says.
-- Fields: "v" version, "e" epoch, "d:<kind>:<id>" the documents.
local key, op = KEYS[1], ARGV[1]
local version = redis.call('HGET', key, 'v') or '0'

-- version, epoch (for the first), then operation, field and document of each change. Made if the version is still that:
-- the version since, or that and all fields where it is another.
if op == 'commit' then
  if version ~= ARGV[2] then return { version, redis.call('HGETALL', key) } end
  if version == '0' then redis.call('HSET', key, 'e', ARGV[3]) end
  for i = 4, #ARGV, 3 do
    if ARGV[i] == 'put' then
      redis.call('HSET', key, ARGV[i + 1], ARGV[i + 2])
    else
      redis.call('HDEL', key, ARGV[i + 1])
    end
  end
  return { tostring(redis.call('HINCRBY', key, 'v', 1)), {} }

-- version. All fields where it is another.
elseif op == 'read' then
  if version == ARGV[2] then return { version, {} } end
  return { version, redis.call('HGETALL', key) }
end
return redis.error_reply('ERR no operation ' .. op)
